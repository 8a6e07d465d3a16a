/** The list of studies: filters that search while a person types, a table, and pages. */

import {search} from "./api.js";
import {debounced, h} from "./dom.js";
import {reason} from "./faults.js";
import {t} from "./i18n.js";
import {row} from "./study-row.js";
import {NEWEST, parametersOf} from "./study-search.js";

const PAGE = 50;
const MODALITIES = "CT MR CR DX US MG PT NM XA RF SM OP OT SR SEG RTSTRUCT".split(" ");
/** Column -> attribute to order by. */
const ORDERS = {
  name: "PatientName",
  patient: "PatientID",
  date: "StudyDate",
  accession: "AccessionNumber",
  description: "StudyDescription",
};

/**
 * `filters` come from the address of the page and go back to it. Emits `filters` when they change.
 */
export class StudyList extends HTMLElement {
  filters = {};
  #cursors = [""]; // the cursor of each page up to the present one
  #abort = null;
  #body = h("tbody");
  #table = null;
  #foot = h("nav", {class: "row pages"});
  #state = h("div", {class: "state", role: "status"});

  connectedCallback() {
    this.append(
      this.#form(),
      h(
        "div",
        {class: "card"},
        (this.#table = h("table", {class: "studies"}, this.#head(), this.#body)),
        this.#state,
      ),
      this.#foot,
    );
    this.addEventListener("keydown", (event) => this.#keyed(event));
    this.load();
  }

  disconnectedCallback() {
    this.#abort?.abort();
  }

  /** Puts the cursor into the first filter. */
  focusSearch() {
    this.querySelector("input").focus();
  }

  #form() {
    const later = debounced(() => this.#changed(), 180);
    const field = (name, label, properties) =>
      h(
        "label",
        {class: `field ${name}`},
        h("span", {}, label),
        h("input", {
          name,
          value: this.filters[name] || null,
          autocomplete: "off",
          spellcheck: "false",
          ...properties,
          oninput: (event) => {
            this.filters[name] = event.target.value;
            later();
          },
        }),
      );
    const kinds = h(
      "select",
      {
        name: "modality",
        onchange: (event) => {
          this.filters.modality = event.target.value;
          this.#changed();
        },
      },
      h("option", {value: ""}, t("any")),
      MODALITIES.map((each) => h("option", {value: each, selected: each === this.filters.modality}, each)),
    );
    const open = Object.keys(this.filters).some((key) => !["name", "order"].includes(key));
    const more = h(
      "button",
      {
        type: "button",
        class: "quiet more-filters",
        "aria-expanded": String(open),
        onclick: () => {
          more.setAttribute("aria-expanded", String(more.form.classList.toggle("open")));
        },
      },
      t("moreFilters"),
    );
    return h(
      "form",
      {
        role: "search",
        "aria-label": t("search"),
        class: `filters card ${open ? "open" : ""}`,
        onsubmit: (event) => {
          event.preventDefault();
          this.#changed();
        },
      },
      field("name", t("name"), {type: "search"}),
      more,
      field("patient", t("patient"), {type: "search"}),
      field("accession", t("accession"), {type: "search"}),
      field("description", t("description"), {type: "search"}),
      h("label", {class: "field modality"}, h("span", {}, t("modality")), kinds),
      field("from", t("from"), {type: "date"}),
      field("to", t("to"), {type: "date"}),
      h("button", {type: "button", class: "quiet clear", onclick: () => this.#clear()}, t("clear")),
    );
  }

  #head() {
    const column = (key, label, sorts = true) => {
      const order = ORDERS[key];
      const now = (this.filters.order || NEWEST).replace(/^-/, "");
      const direction =
        now !== order ? null : (this.filters.order || NEWEST).startsWith("-") ? "descending" : "ascending";
      if (!sorts) return h("th", {scope: "col", class: key}, label);
      return h(
        "th",
        {scope: "col", class: key, "aria-sort": direction},
        h(
          "button",
          {type: "button", title: t("sortBy", {column: label}), onclick: () => this.#sort(order, direction)},
          label,
          h(
            "span",
            {"aria-hidden": "true", class: "arrow"},
            direction === "descending" ? "↓" : direction ? "↑" : "",
          ),
        ),
      );
    };
    return h(
      "thead",
      {},
      h(
        "tr",
        {},
        column("name", t("name")),
        column("patient", t("patient")),
        column("date", t("date")),
        column("modality", t("modality"), false),
        column("description", t("description")),
        column("accession", t("accession")),
        column("count", t("seriesCount"), false),
        column("count", t("instanceCount"), false),
      ),
    );
  }

  #sort(order, direction) {
    this.filters.order =
      direction === "ascending" ? `-${order}` : direction ? order : order === "StudyDate" ? NEWEST : order;
    const named = this.querySelectorAll("th button");
    const place = [...named].indexOf(document.activeElement);
    this.#table.tHead.replaceWith(this.#head());
    this.querySelectorAll("th button")[place]?.focus();
    this.#changed();
  }

  #clear() {
    this.filters = {};
    this.querySelector("form").reset();
    for (const field of this.querySelectorAll("form input")) field.value = "";
    this.querySelector("select").value = "";
    this.#changed();
    this.focusSearch();
  }

  #changed() {
    this.#cursors = [""];
    this.dispatchEvent(new CustomEvent("filters", {detail: this.filters}));
    this.load();
  }

  /** Searches; the answer of an earlier search is dropped. */
  async load() {
    this.#abort?.abort();
    this.#abort = new AbortController();
    const {signal} = this.#abort;
    this.#table.setAttribute("aria-busy", "true");
    try {
      const after = this.#cursors.at(-1);
      const found = await search("studies", {...parametersOf(this.filters), limit: PAGE, after}, signal);
      this.#show(found);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.#fail(error);
    }
    this.#table.removeAttribute("aria-busy");
  }

  #show({items, total, after}) {
    this.#body.replaceChildren(...items.map(row));
    const first = (this.#cursors.length - 1) * PAGE + 1;
    const searched = Object.keys(parametersOf(this.filters)).some((name) => name !== "orderby");
    this.#table.hidden = !items.length;
    this.#state.replaceChildren();
    if (!items.length)
      this.#state.append(
        searched
          ? h("p", {}, t("none"))
          : h("div", {}, h("p", {}, t("empty")), h("p", {class: "dim"}, t("emptyHint"))),
      );
    const last = first + items.length - 1;
    const known = total !== null && this.#cursors.length === 1 ? total : after ? this.known : last;
    this.known = known;
    const turn = (cursor, key) =>
      h(
        "button",
        {type: "button", class: "quiet", disabled: cursor === null, onclick: () => this.#turn(cursor)},
        t(key),
      );
    this.#foot.replaceChildren(
      h(
        "span",
        {class: "range", role: "status"},
        items.length
          ? known === undefined || known === null
            ? t("shownOpen", {first, last})
            : t("shown", {first, last, total: known})
          : "",
      ),
      turn(this.#cursors.length > 1 ? -1 : null, "previous"),
      turn(after, "next"),
    );
    this.#foot.setAttribute("aria-label", t("title"));
  }

  #turn(cursor) {
    if (cursor === -1) this.#cursors.pop();
    else this.#cursors.push(cursor);
    this.load().then(() => this.#body.querySelector("a")?.focus({preventScroll: true}));
    scrollTo({top: 0});
  }

  #fail(error) {
    this.#body.replaceChildren();
    this.#table.hidden = true;
    this.#foot.replaceChildren();
    this.#state.replaceChildren(
      h("p", {class: "bad"}, t("error", {reason: reason(error)})),
      h("button", {type: "button", onclick: () => this.load()}, t("tryAgain")),
    );
  }

  #keyed(event) {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!step || !event.target.matches("a, input[type=search]")) return;
    const links = [...this.#body.querySelectorAll("a")];
    const to = links[links.indexOf(event.target) + step];
    if (to) {
      event.preventDefault();
      to.focus();
    } else if (step < 0 && links[0] === event.target) this.focusSearch();
  }
}

customElements.define("study-list", StudyList);
