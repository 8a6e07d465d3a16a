/** One study: its patient, its series, and the instances of each series with thumbnails. */

import {actionsOf} from "./actions.js";
import {resource, search} from "./api.js";
import {TAG, date, number, text, time, values} from "./dicom.js";
import {h} from "./dom.js";
import {failure} from "./faults.js";
import {instances, t} from "./i18n.js";

const SERIES_A_PAGE = 100;
const INSTANCES_A_PAGE = 48;
const THUMBNAIL = 160; // pixels

/** A thumbnail that is loaded when it comes into view. Without a picture it shows the modality. */
export function thumbnail(uids, alt, word) {
  const frame = h("span", {class: "thumbnail"});
  const missing = () =>
    frame.replaceChildren(
      h("span", {class: "no-picture", role: "img", "aria-label": `${alt}: ${t("noPicture")}`}, word || "–"),
    );
  frame.append(
    h("img", {
      src: resource(uids, `thumbnail?viewport=${THUMBNAIL},${THUMBNAIL}`),
      alt,
      loading: "lazy",
      decoding: "async",
      width: THUMBNAIL,
      height: THUMBNAIL,
      onerror: missing,
    }),
  );
  return frame;
}

/** `uids` has the Study Instance UID, `facts` are those of the server. */
export class StudyView extends HTMLElement {
  uids = [];
  facts = null;
  #abort = null;

  connectedCallback() {
    this.load();
  }

  disconnectedCallback() {
    this.#abort?.abort();
  }

  async load() {
    this.#abort?.abort();
    this.#abort = new AbortController();
    const {signal} = this.#abort,
      [uid] = this.uids;
    if (!this.firstChild) this.replaceChildren(h("p", {class: "state", role: "status"}, t("loading")));
    try {
      const [found, series] = await Promise.all([
        search("studies", {StudyInstanceUID: uid}, signal),
        search(
          `studies/${encodeURIComponent(uid)}/series`,
          {
            orderby: "SeriesNumber",
            limit: SERIES_A_PAGE,
            includefield: "SeriesDate,SeriesTime,BodyPartExamined",
          },
          signal,
        ),
      ]);
      if (found.items.length) this.#show(found.items[0], series);
      else
        this.replaceChildren(
          h(
            "div",
            {class: "state"},
            h("h1", {}, t("notThere")),
            h("a", {class: "up", href: "#/"}, t("toStart")),
          ),
        );
    } catch (error) {
      if (error.name !== "AbortError") this.replaceChildren(failure(error, () => this.load()));
    }
  }

  #show(study, series) {
    const name = text(study, TAG.name) || t("noName");
    const title = [name, text(study, TAG.studyDescription), date(text(study, TAG.studyDate))]
      .filter(Boolean)
      .join(", ");
    const fact = (key, value) => (value ? h("div", {}, h("dt", {}, t(key)), h("dd", {}, value)) : null);
    document.title = `${name} – streamsrv`;
    const list = h("div", {class: "series-list"});
    this.replaceChildren(
      h(
        "nav",
        {"aria-label": t("home"), class: "crumbs"},
        h("a", {class: "up", href: "#/"}, `‹ ${t("home")}`),
      ),
      h(
        "section",
        {class: "card study-card"},
        h("h1", {}, name),
        h(
          "dl",
          {class: "facts"},
          fact("patient", text(study, TAG.patient)),
          fact(
            "birthDate",
            [date(text(study, TAG.birthDate)), text(study, TAG.sex)].filter(Boolean).join(" · "),
          ),
          fact(
            "studyDate",
            [date(text(study, TAG.studyDate)), time(text(study, TAG.studyTime))].filter(Boolean).join(" "),
          ),
          fact("description", text(study, TAG.studyDescription)),
          fact("accession", text(study, TAG.accession)),
          fact("referrer", text(study, TAG.referrer)),
          fact("modality", values(study, TAG.modalities).join(", ")),
          fact("instanceCount", number(study, TAG.instancesInStudy).toLocaleString()),
        ),
        actionsOf(this.uids, {
          facts: this.facts,
          title,
          count: number(study, TAG.instancesInStudy),
          gone: () => this.#gone(),
        }),
      ),
      list,
    );
    this.#append(list, series);
  }

  #append(list, {items, after}) {
    const all = items.map((each) => this.#series(each));
    list.append(...all);
    if (list.children.length === 1 && !after) list.querySelector("button.toggle").click();
    if (!after) return;
    const more = h(
      "button",
      {
        type: "button",
        onclick: async () => {
          const next = await search(`studies/${encodeURIComponent(this.uids[0])}/series`, {
            orderby: "SeriesNumber",
            limit: SERIES_A_PAGE,
            after,
          });
          more.remove();
          this.#append(list, next);
        },
      },
      t("more", {n: SERIES_A_PAGE}),
    );
    list.append(more);
  }

  #series(series) {
    const uids = [this.uids[0], text(series, TAG.series)],
      count = number(series, TAG.instancesInSeries);
    const modality = text(series, TAG.modality),
      description = text(series, TAG.seriesDescription);
    const title = t("seriesN", {n: text(series, TAG.seriesNumber)}).trim();
    const label = [title, description].filter(Boolean).join(", ");
    const grid = h("div", {class: "grid", id: `of-${uids[1]}`, hidden: true});
    const toggle = h(
      "button",
      {
        type: "button",
        class: "toggle",
        "aria-expanded": "false",
        "aria-controls": grid.id,
        "aria-label": `${t("show")}: ${label}`,
      },
      t("show"),
    );
    toggle.addEventListener("click", () => {
      grid.hidden = !grid.hidden;
      toggle.textContent = t(grid.hidden ? "show" : "hide");
      toggle.setAttribute("aria-label", `${toggle.textContent}: ${label}`);
      toggle.setAttribute("aria-expanded", String(!grid.hidden));
      if (!grid.firstChild) this.#fill(grid, uids, modality, "");
    });
    const section = h(
      "section",
      {class: "card series", "aria-label": label},
      h(
        "div",
        {class: "series-head"},
        thumbnail(uids, label, modality),
        h(
          "div",
          {class: "series-text"},
          h(
            "h2",
            {},
            h("span", {class: "tag"}, modality || "?"),
            " ",
            title,
            " ",
            h("span", {class: "dim"}, description || t("noDescription")),
          ),
          h(
            "p",
            {class: "dim"},
            [instances(count), text(series, TAG.bodyPart), time(text(series, "00080031"))]
              .filter(Boolean)
              .join(" · "),
          ),
          h(
            "div",
            {class: "row"},
            toggle,
            actionsOf(uids, {facts: this.facts, title: label, count, gone: () => this.#gone(section)}),
          ),
        ),
      ),
      grid,
    );
    return section;
  }

  async #fill(grid, uids, modality, after) {
    const more = h("p", {class: "dim", role: "status"}, t("loading"));
    grid.append(more);
    try {
      const found = await search(
        `studies/${uids[0]}/series/${uids[1]}/instances`,
        {orderby: "InstanceNumber", limit: INSTANCES_A_PAGE, after},
        this.#abort.signal,
      );
      more.remove();
      grid.append(...found.items.map((each) => card(uids, each, modality)));
      if (!found.after) return;
      const button = h(
        "button",
        {
          type: "button",
          class: "quiet",
          onclick: () => {
            button.remove();
            this.#fill(grid, uids, modality, found.after);
          },
        },
        t("more", {n: INSTANCES_A_PAGE}),
      );
      grid.append(button);
    } catch (error) {
      if (error.name !== "AbortError")
        more.replaceWith(
          failure(error, (event) => {
            event.target.parentNode.remove();
            this.#fill(grid, uids, modality, after);
          }),
        );
    }
  }

  /** After a deletion: the study is empty, or one series less. */
  #gone(section) {
    this.dispatchEvent(new Event("changed", {bubbles: true}));
    section?.remove();
    if (section && this.querySelector("section.series")) this.load();
    else location.hash = "#/";
  }
}

function card(uids, instance, modality) {
  const uid = text(instance, TAG.instance),
    n = text(instance, TAG.instanceNumber),
    frames = number(instance, TAG.frames, 1);
  const label = t("instanceN", {n: n || "?"});
  return h(
    "a",
    {class: "instance", href: `#/studies/${uids[0]}/series/${uids[1]}/instances/${uid}`, "aria-label": label},
    thumbnail([...uids, uid], "", modality),
    h("span", {class: "caption"}, n || "?", frames > 1 ? ` · ${t("framesN", {n: frames})}` : ""),
  );
}

customElements.define("study-view", StudyView);
