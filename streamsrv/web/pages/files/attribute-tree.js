/** Every attribute of a dataset as a tree. Items of sequences are drawn when they are opened. */

import {base, names} from "./api.js";
import {plain} from "./dicom.js";
import {debounced, h} from "./dom.js";
import {t} from "./i18n.js";

const FOUND = 300; // matches of the filter that are shown
const LONGEST = 400; // characters of a value that is shown at once

/** `00100010` as `(0010,0010)`. */
export const spelled = (tag) => `(${tag.slice(0, 4)},${tag.slice(4)})`;

/** The name of an attribute; of a private one that of its creator, if the dataset has it. */
export function nameIn(dictionary, tag, dataset) {
  const known = dictionary[tag] ?? dictionary[`${tag.slice(0, 2)}xx${tag.slice(4)}`];
  if (known) return known;
  if (parseInt(tag[3], 16) % 2 === 0) return "";
  const creator = dataset[`${tag.slice(0, 4)}00${tag.slice(4, 6)}`]?.Value?.[0];
  return tag.slice(4, 6) === "00" ? "Private Creator" : creator ? `[${creator}]` : "";
}

/** The values of an element that is no sequence, as one text. */
export function valueOf(element) {
  if (element.Value) return element.Value.map((value) => (value === null ? "" : plain(value))).join(" \\ ");
  return element.InlineBinary ?? "";
}

export class AttributeTree extends HTMLElement {
  #dataset = {};
  #dictionary = {};
  #place = h("div", {class: "attributes"});
  #filter = h("input", {
    type: "search",
    name: "filter",
    autocomplete: "off",
    spellcheck: "false",
    "aria-label": t("filter"),
    placeholder: t("filter"),
    oninput: debounced(() => this.#draw(), 120),
  });

  connectedCallback() {
    if (!this.firstChild) this.append(this.#filter, this.#place);
  }

  /** @param {Object} dataset DICOM JSON */
  async show(dataset) {
    this.#dataset = dataset;
    try {
      this.#dictionary = await names();
    } catch {
      // Tags and values can be read without names.
    }
    if (this.#dataset === dataset) this.#draw();
  }

  #draw() {
    const wanted = this.#filter.value.trim().toLowerCase();
    if (wanted) this.#drawFound(wanted);
    else this.#place.replaceChildren(this.#list(this.#dataset));
  }

  #list(dataset) {
    return h(
      "ul",
      {},
      Object.keys(dataset)
        .sort()
        .map((tag) => this.#row(tag, dataset)),
    );
  }

  #row(tag, dataset) {
    const element = dataset[tag],
      head = this.#head(tag, dataset);
    if (element.vr !== "SQ") return h("li", {class: "leaf"}, head, this.#value(element));
    const items = element.Value ?? [];
    const number = items.length === 1 ? t("itemOne") : t("items", {n: items.length});
    if (!items.length) return h("li", {class: "leaf"}, head, h("span", {class: "value dim"}, number));
    return h(
      "li",
      {},
      opened(h("summary", {}, head, h("span", {class: "value dim"}, number)), () =>
        h(
          "ul",
          {},
          items.map((item, place) =>
            h(
              "li",
              {},
              opened(
                h("summary", {class: "item"}, t("item", {n: place + 1})),
                () => this.#list(item ?? {}),
                items.length === 1,
              ),
            ),
          ),
        ),
      ),
    );
  }

  #head(tag, dataset) {
    return [
      h("code", {class: "tag-number"}, spelled(tag)),
      h("span", {class: "vr"}, dataset[tag].vr),
      h("span", {class: "attribute"}, nameIn(this.#dictionary, tag, dataset)),
    ];
  }

  #value(element) {
    if (element.BulkDataURI) {
      const url = URL.parse?.(element.BulkDataURI, base) ?? new URL(element.BulkDataURI, base);
      const safe = ["http:", "https:"].includes(url.protocol);
      return h(
        "span",
        {class: "value"},
        safe ? h("a", {href: url.href, download: true}, t("bulk")) : element.BulkDataURI,
      );
    }
    const value = valueOf(element);
    if (!value) return h("span", {class: "value dim"}, t("emptyValue"));
    if (value.length <= LONGEST) return h("span", {class: "value"}, value);
    const rest = h("span", {class: "value"}, `${value.slice(0, LONGEST)}… `);
    rest.append(
      h(
        "button",
        {type: "button", class: "quiet small", onclick: () => rest.replaceChildren(value)},
        t("more", {n: value.length - LONGEST}),
      ),
    );
    return rest;
  }

  #drawFound(wanted) {
    const found = [];
    this.#search(this.#dataset, wanted, "", found);
    const key = found.length >= FOUND ? "filteredMost" : found.length === 1 ? "filteredOne" : "filtered";
    this.#place.replaceChildren(
      h("p", {class: "dim", role: "status"}, t(key, {n: found.length})),
      h(
        "ul",
        {},
        found.map(({tag, dataset, path}) =>
          h(
            "li",
            {class: "leaf"},
            path ? h("span", {class: "path dim"}, path) : null,
            this.#head(tag, dataset),
            dataset[tag].vr === "SQ" ? null : this.#value(dataset[tag]),
          ),
        ),
      ),
    );
  }

  #search(dataset, wanted, path, found) {
    for (const tag of Object.keys(dataset).sort()) {
      if (found.length >= FOUND) return;
      const element = dataset[tag],
        name = nameIn(this.#dictionary, tag, dataset);
      const texts = [name, tag, spelled(tag), element.vr === "SQ" ? "" : valueOf(element)];
      if (texts.some((text) => text.toLowerCase().includes(wanted))) found.push({tag, dataset, path});
      if (element.vr === "SQ")
        for (const [place, item] of (element.Value ?? []).entries())
          this.#search(item ?? {}, wanted, `${path}${name || spelled(tag)} ${place + 1} › `, found);
    }
  }
}

/** A `details` element whose content is made when it is opened. */
function opened(summary, content, open = false) {
  const made = h("details", {open}, summary);
  const fill = () => {
    if (made.open && !made.children[1]) made.append(content());
  };
  made.addEventListener("toggle", fill);
  if (open) fill();
  return made;
}

customElements.define("attribute-tree", AttributeTree);
