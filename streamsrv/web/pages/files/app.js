/** The frame of the page: header, address, language, user, upload, and the view of the address. */

import {count, facts, signOut} from "./api.js";
import {announce, h} from "./dom.js";
import {reason} from "./faults.js";
import {current, switchLanguage, t} from "./i18n.js";
import {ShareOpening, SignInForm} from "./sign-in.js";
import {StudyList} from "./study-list.js";
import {StudyView} from "./study-view.js";
import {InstanceView} from "./instance-view.js";
import {takeDrops} from "./drops.js";
import {UploadPanel} from "./upload-panel.js";
import {Uploads} from "./uploads.js";

// The viewer sends users to this address who are not signed in (pages/viewer.py).
const VIEWER = "#/viewer/";
const NO_FACTS = {
  version: "",
  allowed: {search: true, read: true},
  viewers: [],
  user: null,
  session: false,
  signIn: {needed: false, possible: true, oidc: false},
};

/** Reads the address behind `#`: `/`, `/studies/UID`, `/studies/UID/series/UID/instances/UID`, `/share/SECRET`.
 * The issuer leads back to `/login-failed` and `/login-unavailable`. */
export function placeOf(hash) {
  const [path, query = ""] = hash.replace(/^#/, "").split("?");
  const parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  const names = parts.filter((_, place) => place % 2 === 0).join("/");
  const uids = parts.filter((_, place) => place % 2 === 1);
  const known = {"": "list", studies: "study", "studies/series/instances": "instance", share: "share"}[names];
  const fault = {"/login-failed": "loginFailed", "/login-unavailable": "loginUnavailable"}[path];
  let view = known && uids.length === parts.length / 2 ? known : "unknown";
  if (path === "/share") view = "list"; // the secret of a link was taken out of the address
  if (fault) view = "list";
  return {view, uids, fault, filters: Object.fromEntries(new URLSearchParams(query))};
}

class StreamApp extends HTMLElement {
  #facts = NO_FACTS;
  #uploads = new Uploads();
  #main = h("main", {id: "main", tabindex: "-1"});
  #holds = h("p", {class: "holds"});
  #panel = null;
  #dialog = null; // of a session that has ended
  #tabs = new BroadcastChannel("streamsrv");

  async connectedCallback() {
    await this.#ask();
    this.#draw();
    if (this.#facts.user) this.#tabs.postMessage("in");
    this.#tabs.onmessage = ({data}) => (data === "in" ? this.#dialog && this.#signedIn() : location.reload());
    addEventListener("signed-out", () => this.#signedOut());
    addEventListener("signed-in", ({detail}) => {
      this.#tabs.postMessage("in");
      this.#signedIn(detail);
    });
    addEventListener("hashchange", () => this.#route());
    addEventListener("keydown", (event) => this.#keyed(event));
    this.#uploads.addEventListener("settled", () => this.#stored());
    this.addEventListener("changed", () => this.#count());
    takeDrops(this, {
      allowed: () => this.#facts.allowed.store,
      take: async (files) => {
        this.#panel.open();
        this.#uploads.add(await files);
      },
    });
  }

  async #ask() {
    try {
      this.#facts = await facts();
    } catch {
      // The list shows the reason.
    }
  }

  /** Whether the page has to wait for a sign-in. */
  get #closed() {
    return this.#facts.signIn.needed && !this.#facts.user;
  }

  /** A session has ended: the view stays below a dialog, and the uploads wait. */
  #signedOut() {
    if (this.#dialog || this.#closed) return;
    const form = Object.assign(new SignInForm(), {facts: this.#facts, text: t("signInAgainText")});
    if (this.#uploads.list.some((each) => ["waiting", "sending"].includes(each.state))) form.target = "_blank";
    this.#dialog = h(
      "dialog",
      {"aria-labelledby": "again", class: "sign-in"},
      h("h2", {id: "again"}, t("signInAgain")),
      form,
    );
    this.#dialog.addEventListener("close", () => {
      this.#dialog?.remove();
      this.#dialog = null;
    });
    this.append(this.#dialog);
    this.#dialog.showModal();
    form.focusFirst();
  }

  /** `study` is that of a share link. */
  async #signedIn(study = null) {
    const before = this.#facts.user;
    await this.#ask();
    this.#dialog?.close();
    if (study) history.replaceState(null, "", `#/studies/${encodeURIComponent(study)}`);
    if (study || before !== this.#facts.user) this.#draw();
    else if (this.#main.firstElementChild.load) this.#main.firstElementChild.load();
    else this.#route();
    this.#uploads.resume();
  }

  async #signOut() {
    try {
      const there = await signOut();
      this.#tabs.postMessage("out");
      if (there) location.assign(there);
      else location.reload();
    } catch (error) {
      announce(t("error", {reason: reason(error)}));
    }
  }

  #user() {
    const {user, session, signIn, kind} = this.#facts;
    if (!user || !signIn.needed) return [];
    const name = kind === "share" ? t("sharedUser") : user;
    const label = h("span", {class: "user", title: t("signedInAs", {user: name})}, name);
    const button = h("button", {type: "button", class: "quiet", onclick: () => this.#signOut()}, t("signOut"));
    return session ? [label, button] : [label];
  }

  #draw() {
    document.documentElement.lang = current() === "zh" ? "zh-Hans" : "en";
    const {store} = this.#facts.allowed;
    this.#panel?.remove();
    this.#panel = store ? Object.assign(new UploadPanel(), {uploads: this.#uploads}) : null;
    this.replaceChildren(
      h(
        "a",
        {
          href: "#main",
          class: "skip",
          onclick: (event) => {
            event.preventDefault();
            this.#main.focus();
          },
        },
        t("skip"),
      ),
      h(
        "header",
        {class: "top"},
        h(
          "a",
          {href: "#/", class: "brand", "aria-label": `streamsrv: ${t("home")}`},
          h("img", {src: "page/icon.svg", alt: "", width: 26, height: 26}),
          h("span", {}, "streamsrv"),
        ),
        this.#holds,
        h(
          "div",
          {class: "row"},
          !store && this.#facts.version && !this.#closed ? h("span", {class: "tag"}, t("readOnly")) : null,
          store
            ? h(
                "button",
                {type: "button", class: "main upload", onclick: () => this.#panel.open()},
                t("upload"),
              )
            : null,
          this.#user(),
          h(
            "button",
            {
              type: "button",
              class: "quiet language",
              lang: current() === "zh" ? "en" : "zh-Hans",
              "aria-label": t("languageLabel"),
              onclick: () => this.#switch(),
            },
            t("language"),
          ),
        ),
      ),
      this.#main,
      h(
        "footer",
        {},
        h("p", {class: "dim"}, this.#closed ? "" : t("keys")),
        h("p", {class: "dim"}, this.#facts.version ? `streamsrv ${this.#facts.version}` : ""),
      ),
      ...(this.#panel ? [this.#panel] : []),
      h("div", {id: "messages", role: "status", "aria-live": "polite"}),
    );
    this.#route();
    this.#count();
  }

  #switch() {
    const open = this.#panel?.isOpen;
    switchLanguage();
    this.#draw();
    if (open) this.#panel.open();
    this.querySelector("button.language").focus();
  }

  #route() {
    if (location.hash.startsWith(VIEWER) && !this.#closed) {
      location.replace(new URL(location.hash.slice(2), document.baseURI));
      return;
    }
    const {view, uids, fault, filters} = placeOf(location.hash);
    const given = {facts: this.#facts, uids, filters};
    document.title = `${t("title")} – streamsrv`;
    if (view === "share") {
      history.replaceState(null, "", "#/share"); // neither the history nor a picture of the screen keeps the secret
      this.#main.replaceChildren(Object.assign(new ShareOpening(), {facts: this.#facts, secret: uids[0]}));
    } else if (this.#closed) this.#main.replaceChildren(this.#signInView(fault));
    else if (view === "list" && !this.#facts.allowed.search)
      this.#main.replaceChildren(h("div", {class: "state"}, h("h1", {}, t("noSearch"))));
    else if (view === "list") {
      const list = Object.assign(new StudyList(), given);
      list.addEventListener("filters", ({detail}) => remember(detail));
      this.#main.replaceChildren(h("h1", {class: "off-screen"}, t("title")), list);
    } else if (view === "study") this.#main.replaceChildren(Object.assign(new StudyView(), given));
    else if (view === "instance") this.#main.replaceChildren(Object.assign(new InstanceView(), given));
    else
      this.#main.replaceChildren(
        h("div", {class: "state"}, h("h1", {}, t("notThere")), h("a", {href: "#/"}, t("toStart"))),
      );
    scrollTo({top: 0});
    if (!["list", "share"].includes(view) && !this.#closed) this.#main.focus({preventScroll: true});
  }

  #signInView(fault) {
    const form = Object.assign(new SignInForm(), {facts: this.#facts});
    requestAnimationFrame(() => form.focusFirst());
    const words = fault ? h("p", {class: "bad", role: "alert"}, t(fault)) : null;
    return h("section", {class: "card sign-in"}, h("h1", {}, t("signIn")), words, form);
  }

  async #count() {
    if (this.#closed || !this.#facts.allowed.search) return;
    try {
      const [studies, instances] = await Promise.all([count("studies"), count("instances")]);
      this.#holds.replaceChildren(t("holds", {studies, instances}));
    } catch {
      this.#holds.replaceChildren();
    }
  }

  #stored() {
    this.#count();
    this.#main.firstElementChild.load?.();
    this.querySelector("study-list")?.load();
  }

  #keyed(event) {
    const typing = event.target.matches?.("input, select, textarea");
    if (this.#closed) return;
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      if (placeOf(location.hash).view !== "list") location.hash = "#/";
      setTimeout(() => this.querySelector("study-list")?.focusSearch());
    } else if (event.key === "Escape" && !document.querySelector("dialog[open]") && !typing) {
      if (this.#panel?.isOpen) this.#panel.close();
      else this.querySelector("a.up")?.click();
    }
  }
}

function remember(filters) {
  const kept = Object.entries(filters).filter(([, value]) => value);
  const query = new URLSearchParams(kept).toString();
  history.replaceState(null, "", `#/${query ? `?${query}` : ""}`);
}

customElements.define("stream-app", StreamApp);
