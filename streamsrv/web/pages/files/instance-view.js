/** One instance: preview and attributes, and a slider through its series. */

import {actionsOf} from "./actions.js";
import {metadata, search} from "./api.js";
import {AttributeTree} from "./attribute-tree.js";
import {TAG, number, text} from "./dicom.js";
import {h} from "./dom.js";
import {failure} from "./faults.js";
import {t} from "./i18n.js";
import {ImagePreview, slider} from "./preview.js";

const MOST = 2000; // instances that the slider reaches
const MANY_FRAMES = 2000; // with more, the metadata may have many megabytes

/** `uids` has those of study, series and instance, `facts` are those of the server. */
export class InstanceView extends HTMLElement {
  uids = [];
  facts = null;
  #abort = new AbortController();
  #loading = null;
  #siblings = [];
  #preview = new ImagePreview();
  #tree = h("div", {class: "tree-place"});
  #head = h("div");
  #slider = h("div");

  connectedCallback() {
    const [study] = this.uids;
    this.append(
      h(
        "nav",
        {"aria-label": t("title"), class: "crumbs"},
        h("a", {href: "#/"}, `‹ ${t("home")}`),
        h("a", {class: "up", href: `#/studies/${study}`, id: "to-study"}, "…"),
      ),
      h("section", {class: "card"}, this.#head),
      h(
        "div",
        {class: "columns"},
        h("section", {class: "card", "aria-label": t("preview")}, this.#slider, this.#preview),
        h("section", {class: "card"}, h("h2", {}, t("attributes")), this.#tree),
      ),
    );
    this.#findSiblings();
    this.load();
  }

  disconnectedCallback() {
    this.#abort.abort();
    this.#loading?.abort();
  }

  /** The instances of the series, for the slider; the search also says whether this instance is large. */
  async #findSiblings() {
    const [study, series, instance] = this.uids;
    try {
      const found = await search(
        `studies/${study}/series/${series}/instances`,
        {orderby: "InstanceNumber", limit: MOST},
        this.#abort.signal,
      );
      this.#siblings = found.items.map((each) => text(each, TAG.instance));
      if (this.#siblings.length < 2) return;
      const place = this.#siblings.indexOf(instance) + 1;
      this.#slider.replaceChildren(
        slider({
          name: "image",
          label: t("image"),
          low: 1,
          high: this.#siblings.length,
          value: Math.max(place, 1),
          suffix: ` / ${this.#siblings.length}`,
          oninput: (value) => this.#go(this.#siblings[value - 1]),
        }),
      );
      if (found.after) this.#slider.append(h("p", {class: "dim"}, t("tooMany", {n: MOST})));
    } catch {
      // Without the slider the instance can be seen all the same.
    }
  }

  #go(instance) {
    this.uids = [...this.uids.slice(0, 2), instance];
    history.replaceState(null, "", `#/studies/${this.uids[0]}/series/${this.uids[1]}/instances/${instance}`);
    this.load();
  }

  /** Loads the metadata of the present instance; an earlier answer is dropped. */
  async load({large = false} = {}) {
    this.#loading?.abort();
    this.#loading = new AbortController();
    const {signal} = this.#loading,
      uids = this.uids,
      columns = this.querySelector(".columns");
    columns.hidden = false;
    try {
      const frames = large ? 1 : await this.#frames(uids, signal);
      if (frames > MANY_FRAMES) {
        this.#tree.replaceChildren(
          h("p", {}, t("large", {n: frames})),
          h("button", {type: "button", onclick: () => this.load({large: true})}, t("load")),
        );
        const [study, series, instance] = uids;
        const {items} = await search(
          `studies/${study}/series/${series}/instances`,
          {SOPInstanceUID: instance, includefield: SHOWN},
          signal,
        );
        this.#show(items[0], uids);
        return;
      }
      const dataset = await metadata(uids, signal);
      this.#show(dataset, uids);
      const tree = this.querySelector("attribute-tree") ?? new AttributeTree();
      tree.show(dataset);
      if (!tree.isConnected) this.#tree.replaceChildren(tree);
    } catch (error) {
      if (error.name === "AbortError") return;
      columns.hidden = true;
      this.#head.replaceChildren(failure(error, () => this.load()));
    }
  }

  async #frames([study, series, instance], signal) {
    const {items} = await search(
      `studies/${study}/series/${series}/instances`,
      {SOPInstanceUID: instance},
      signal,
    );
    return number(items[0], TAG.frames, 1);
  }

  #show(dataset, uids) {
    const n = text(dataset, TAG.instanceNumber),
      name = text(dataset, TAG.name) || t("noName");
    const title = t("instanceN", {n: n || "?"});
    document.title = `${name}, ${title} – streamsrv`;
    this.querySelector("#to-study").textContent = name;
    this.#head.replaceChildren(
      h(
        "h1",
        {},
        title,
        " ",
        h(
          "span",
          {class: "dim"},
          [text(dataset, TAG.modality), text(dataset, TAG.seriesDescription)].filter(Boolean).join(" · "),
        ),
      ),
      actionsOf(uids, {
        facts: this.facts,
        title: [name, title].join(", "),
        count: 1,
        gone: () => this.#gone(),
      }),
    );
    this.#preview.show(uids, dataset);
  }

  #gone() {
    this.dispatchEvent(new Event("changed", {bubbles: true}));
    const rest = this.#siblings.filter((each) => each !== this.uids[2]);
    location.hash = rest.length ? `#/studies/${this.uids[0]}` : "#/";
  }
}

/** Attributes that the preview of a large instance reads from a search. */
const SHOWN =
  "00080060,0008103E,00100010,00280002,00280004,00280101,00280103,00281050,00281051,00281052,00281053";

customElements.define("instance-view", InstanceView);
