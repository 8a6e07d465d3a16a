/** The frame of the page: header, address, language, upload, and the view of the address. */

import {count, facts} from "./api.js";
import {h} from "./dom.js";
import {current, switchLanguage, t} from "./i18n.js";
import {StudyList} from "./study-list.js";
import {StudyView} from "./study-view.js";
import {InstanceView} from "./instance-view.js";
import {UploadPanel, filesIn} from "./upload-panel.js";
import {Uploads} from "./uploads.js";

const NOTHING_ALLOWED = {version: "", allowed: {store: false, delete: false}, viewers: []};

/** Reads the address behind `#`: `/`, `/studies/UID` or `/studies/UID/series/UID/instances/UID`. */
export function placeOf(hash) {
  const [path, query = ""] = hash.replace(/^#/, "").split("?");
  const parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  const names = parts.filter((_, place) => place % 2 === 0).join("/");
  const uids = parts.filter((_, place) => place % 2 === 1);
  const known = {"": "list", studies: "study", "studies/series/instances": "instance"}[names];
  const view = known && uids.length === parts.length / 2 ? known : "unknown";
  return {view, uids, filters: Object.fromEntries(new URLSearchParams(query))};
}

class StreamApp extends HTMLElement {
  #facts = NOTHING_ALLOWED;
  #uploads = new Uploads();
  #main = h("main", {id: "main", tabindex: "-1"});
  #holds = h("p", {class: "holds"});
  #panel = null;

  async connectedCallback() {
    try {
      this.#facts = await facts();
    } catch {
      // The list shows the reason.
    }
    this.#draw();
    addEventListener("hashchange", () => this.#route());
    addEventListener("keydown", (event) => this.#keyed(event));
    this.#uploads.addEventListener("settled", () => this.#stored());
    this.addEventListener("changed", () => this.#count());
    if (this.#facts.allowed.store) this.#takeDrops();
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
          !store && this.#facts.version ? h("span", {class: "tag"}, t("readOnly")) : null,
          store
            ? h(
                "button",
                {type: "button", class: "main upload", onclick: () => this.#panel.open()},
                t("upload"),
              )
            : null,
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
        h("p", {class: "dim"}, t("keys")),
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
    const {view, uids, filters} = placeOf(location.hash);
    const given = {facts: this.#facts, uids, filters};
    document.title = `${t("title")} – streamsrv`;
    if (view === "list") {
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
    if (view !== "list") this.#main.focus({preventScroll: true});
  }

  async #count() {
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
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      if (placeOf(location.hash).view !== "list") location.hash = "#/";
      setTimeout(() => this.querySelector("study-list")?.focusSearch());
    } else if (event.key === "Escape" && !document.querySelector("dialog[open]") && !typing) {
      if (this.#panel?.isOpen) this.#panel.close();
      else this.querySelector("a.up")?.click();
    }
  }

  #takeDrops() {
    let inside = 0;
    const shown = (on) => this.classList.toggle("dropping", on);
    const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    addEventListener("dragenter", (event) => {
      if (carriesFiles(event)) {
        inside += 1;
        shown(true);
      }
    });
    addEventListener("dragleave", (event) => {
      if (carriesFiles(event)) {
        inside -= 1;
        shown(inside > 0);
      }
    });
    addEventListener("dragover", (event) => {
      if (carriesFiles(event)) event.preventDefault();
    });
    addEventListener("drop", async (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      inside = 0;
      shown(false);
      const files = filesIn(event.dataTransfer); // begins before the event ends, when the items vanish
      this.#panel.open();
      this.#uploads.add(await files);
    });
  }
}

function remember(filters) {
  const kept = Object.entries(filters).filter(([, value]) => value);
  const query = new URLSearchParams(kept).toString();
  history.replaceState(null, "", `#/${query ? `?${query}` : ""}`);
}

customElements.define("stream-app", StreamApp);
