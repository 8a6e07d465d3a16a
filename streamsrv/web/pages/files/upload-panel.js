/** The panel of uploads: file choosers, progress, and a result for each file. */

import {h} from "./dom.js";
import {t} from "./i18n.js";

const SHOWN = 200; // rows; a folder may have thousands of files
const FIRST = ["sending", "failed", "warning", "waiting", "cancelled", "done"];

/** All files of a drop, those in folders too. Reads the items before it waits for anything. */
export async function filesIn(transfer) {
  const entries = [...transfer.items]
    .filter((each) => each.kind === "file")
    .map((each) => each.webkitGetAsEntry?.() ?? each.getAsFile());
  const found = [];
  for (const entry of entries) await collect(entry, found);
  return found;
}

async function collect(entry, found) {
  if (entry instanceof File) found.push({file: entry, name: entry.name});
  else if (entry?.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({file, name: entry.fullPath.replace(/^\//, "")});
  } else if (entry?.isDirectory) {
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // 100 at a time
      if (!some.length) return;
      for (const each of some) await collect(each, found);
    }
  }
}

/** `uploads` is the queue. */
export class UploadPanel extends HTMLElement {
  uploads = null;
  #list = h("ul", {class: "uploads"});
  #summary = h("p", {class: "summary", role: "status"});
  #bar = h("progress", {max: 1, value: 0});
  #drawn = false;
  #listener = () => this.#later();

  connectedCallback() {
    this.hidden = true;
    this.setAttribute("role", "region");
    this.setAttribute("aria-label", t("uploads"));
    this.#bar.setAttribute("aria-label", t("uploads"));
    const chooser = (properties) =>
      h("input", {
        type: "file",
        multiple: true,
        class: "off-screen",
        tabindex: "-1",
        "aria-hidden": "true",
        ...properties,
        onchange: (event) => {
          this.uploads.add(
            [...event.target.files].map((file) => ({file, name: file.webkitRelativePath || file.name})),
          );
          event.target.value = "";
        },
      });
    const files = chooser({name: "files"}),
      folder = chooser({name: "folder", webkitdirectory: true});
    const button = (key, onclick, kind = "quiet") =>
      h("button", {type: "button", class: kind, onclick}, t(key));
    this.append(
      h(
        "div",
        {class: "row spread"},
        h("h2", {}, t("uploads")),
        h(
          "button",
          {type: "button", class: "quiet icon", "aria-label": t("close"), onclick: () => this.close()},
          "×",
        ),
      ),
      h(
        "div",
        {class: "dropzone"},
        h("p", {class: "dim"}, t("drop")),
        h(
          "div",
          {class: "row"},
          button("chooseFiles", () => files.click(), "main"),
          button("chooseFolder", () => folder.click()),
        ),
        files,
        folder,
      ),
      this.#summary,
      this.#bar,
      this.#list,
      h(
        "div",
        {class: "row end"},
        button("retryAll", () => this.uploads.retryFailed()),
        button("cancelAll", () => this.uploads.cancelAll()),
        button("clearList", () => this.uploads.clear()),
      ),
    );
    this.uploads.addEventListener("change", this.#listener);
    this.#draw();
  }

  disconnectedCallback() {
    this.uploads.removeEventListener("change", this.#listener);
  }

  get isOpen() {
    return !this.hidden;
  }

  open() {
    this.hidden = false;
    this.querySelector(".dropzone button").focus();
  }

  close() {
    this.hidden = true;
    document.querySelector("button.upload")?.focus();
  }

  /** Draws at most once for each picture of the screen. */
  #later() {
    if (this.#drawn) return;
    this.#drawn = true;
    setTimeout(() => {
      this.#drawn = false;
      this.#draw();
    }, 100);
  }

  #draw() {
    const {total, ended, failed, part} = this.uploads.counts;
    this.#summary.textContent = total ? t("progress", {done: ended, total, failed}) : "";
    this.#bar.hidden = !total;
    this.#bar.value = part;
    const focused = this.#list.contains(document.activeElement)
      ? document.activeElement.dataset.upload
      : null;
    const ordered = this.uploads.list
      .map((each, place) => ({each, place}))
      .sort(
        (one, other) =>
          FIRST.indexOf(one.each.state) - FIRST.indexOf(other.each.state) || one.place - other.place,
      );
    this.#list.replaceChildren(...ordered.slice(0, SHOWN).map(({each, place}) => this.#row(each, place)));
    if (ordered.length > SHOWN)
      this.#list.append(h("li", {class: "dim"}, t("hidden", {n: ordered.length - SHOWN})));
    if (focused !== null) this.#list.querySelector(`[data-upload="${focused}"]`)?.focus();
    for (const [place, on] of [failed > 0, ended < total, ended > 0].entries())
      this.querySelectorAll(".row.end button")[place].hidden = !on;
  }

  #row(upload, place) {
    const act = ["waiting", "sending"].includes(upload.state)
      ? ["cancel", () => this.uploads.cancel(upload)]
      : ["failed", "cancelled"].includes(upload.state)
        ? ["retry", () => this.uploads.retry(upload)]
        : null;
    const name = upload.study
      ? h("a", {href: `#/studies/${upload.study}`}, upload.name)
      : h("span", {}, upload.name);
    return h(
      "li",
      {class: upload.state},
      h(
        "div",
        {class: "what"},
        h("div", {class: "file"}, name),
        h(
          "div",
          {class: "result"},
          h("span", {class: "word"}, t(upload.state)),
          upload.state === "sending" ? ` ${Math.round(upload.sent * 100)} %` : null,
          upload.reason ? `: ${upload.reason === "network" ? t("network") : upload.reason}` : null,
        ),
      ),
      act
        ? h(
            "button",
            {
              type: "button",
              class: "quiet small",
              "data-upload": place,
              "aria-label": `${t(act[0])}: ${upload.name}`,
              onclick: act[1],
            },
            t(act[0]),
          )
        : null,
    );
  }
}

customElements.define("upload-panel", UploadPanel);
