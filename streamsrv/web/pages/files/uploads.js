/** The queue of uploads: each file is one store transaction (PS3.18 10.5), with progress and a result. */

import {JSON_TYPE, base, reasonIn} from "./api.js";
import {text, values} from "./dicom.js";

const AT_ONCE = 4;
const TRIES = 20; // of a file, while the server is busy
const FAILED = "00081198",
  STORED = "00081199",
  CODE = "00081197",
  REASONS = "00741048",
  COMMENT = "00000902",
  WARNING = "00081196";

/**
 * @typedef {Object} Upload
 * @property {File} file
 * @property {string} name with its folders
 * @property {"waiting"|"sending"|"done"|"warning"|"failed"|"cancelled"} state
 * @property {number} sent part of the file, from 0 to 1
 * @property {string} reason of the server, or `network`
 * @property {string} study the UID, if the file was stored
 */

/** Emits `change` when something changed, and `settled` when no upload is left and something was stored. */
export class Uploads extends EventTarget {
  /** @type {Upload[]} */
  list = [];
  #requests = new Map();
  #news = false;
  #most = AT_ONCE; // uploads at once: fewer after the server was busy, then slowly more again
  #pause = 0; // the timer of a pause

  /** @param {{file: File, name: string}[]} files */
  add(files) {
    for (const {file, name} of files)
      this.list.push({file, name, state: "waiting", sent: 0, reason: "", study: "", tries: 0});
    this.#go();
  }

  cancel(upload) {
    if (upload.state === "waiting") upload.state = "cancelled";
    this.#requests.get(upload)?.abort();
    this.#go();
  }

  cancelAll() {
    for (const upload of this.list.filter((each) => each.state === "waiting")) upload.state = "cancelled";
    for (const request of this.#requests.values()) request.abort();
    this.#go();
  }

  retry(upload) {
    Object.assign(upload, {state: "waiting", sent: 0, reason: "", tries: 0});
    this.#go();
  }

  retryFailed() {
    for (const upload of this.list)
      if (["failed", "cancelled"].includes(upload.state))
        Object.assign(upload, {state: "waiting", sent: 0, reason: "", tries: 0});
    this.#go();
  }

  /** Forgets all uploads that have ended. */
  clear() {
    this.list = this.list.filter((each) => ["waiting", "sending"].includes(each.state));
    this.#go();
  }

  /** @returns {{total: number, ended: number, failed: number, part: number}} `part` is from 0 to 1. */
  get counts() {
    const ended = this.list.filter((each) => !["waiting", "sending"].includes(each.state)).length;
    const failed = this.list.filter((each) => each.state === "failed").length;
    const sending = [...this.#requests.keys()].reduce((sum, each) => sum + each.sent, 0);
    return {
      total: this.list.length,
      ended,
      failed,
      part: this.list.length ? (ended + sending) / this.list.length : 0,
    };
  }

  #go() {
    for (const upload of this.list) {
      if (this.#requests.size >= Math.floor(this.#most) || this.#pause) break;
      if (upload.state === "waiting") this.#send(upload);
    }
    this.#changed();
    if (this.#news && !this.list.some((each) => ["waiting", "sending"].includes(each.state))) {
      this.#news = false;
      this.dispatchEvent(new Event("settled"));
    }
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }

  #send(upload) {
    const request = new XMLHttpRequest();
    this.#requests.set(upload, request);
    upload.state = "sending";
    request.open("POST", new URL("studies", base));
    request.setRequestHeader("Content-Type", "application/dicom");
    request.setRequestHeader("Accept", JSON_TYPE);
    request.upload.onprogress = (event) => {
      upload.sent = event.total ? event.loaded / event.total : 0;
      this.#changed();
    };
    request.onload = () => this.#ended(upload, request);
    request.onabort = () => this.#end(upload, {state: "cancelled"});
    request.onerror = () => this.#end(upload, {state: "failed", reason: "network"});
    request.send(upload.file);
  }

  #ended(upload, request) {
    if (request.status === 503 && upload.tries < TRIES) {
      upload.tries += 1;
      this.#most = Math.max(1, this.#requests.size - 1);
      this.#wait(Number(request.getResponseHeader("Retry-After")) || 1);
      this.#end(upload, {state: "waiting", sent: 0});
      return;
    }
    if (request.status === 401) {
      this.#pause ||= -1; // no timer: until `resume`
      this.#end(upload, {state: "waiting", sent: 0});
      dispatchEvent(new Event("signed-out"));
      return;
    }
    if (request.status < 500) this.#most = Math.min(AT_ONCE, this.#most + 0.1);
    this.#end(upload, resultOf(request.status, request.responseText));
  }

  /** Goes on after a new sign-in. */
  resume() {
    if (this.#pause !== -1) return;
    this.#pause = 0;
    this.#go();
  }

  /** Begins no upload for some seconds: the server is busy. */
  #wait(seconds) {
    clearTimeout(this.#pause);
    this.#pause = setTimeout(() => {
      this.#pause = 0;
      this.#go();
    }, seconds * 1000);
  }

  #end(upload, result) {
    this.#requests.delete(upload);
    Object.assign(upload, result);
    if (["done", "warning"].includes(upload.state)) this.#news = true;
    this.#go();
  }
}

/**
 * The result of one store transaction, from its status and body (PS3.18 10.5.3 and RFC 9457).
 * @returns {{state: string, reason: string, study: string}}
 */
export function resultOf(status, body) {
  let dataset = {};
  try {
    dataset = JSON.parse(body);
  } catch {
    // A problem in plain text, or no body.
  }
  const [failed] = values(dataset, FAILED),
    [stored] = values(dataset, STORED);
  const url = text(stored, "00081190") || text(dataset, "00081190");
  const study = /studies\/([0-9.]+)/.exec(url)?.[1] ?? "";
  if (failed) return {state: "failed", reason: comments(failed) || `${text(failed, CODE)}`, study: ""};
  if (stored)
    return {state: values(stored, WARNING).length ? "warning" : "done", reason: comments(stored), study};
  return {state: "failed", reason: reasonIn(body, status), study: ""};
}

/** The messages of the server: an LO holds 64 characters, so a longer message goes on in the next item. */
const comments = (item) =>
  values(item, REASONS)
    .map((each) => text(each, COMMENT))
    .filter(Boolean)
    .join(" ");
