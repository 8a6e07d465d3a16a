/** The preview of an instance: pictures by `/rendered` with sliders for window and frame, reports, videos. */

import {reasonOf, resource} from "./api.js";
import {TAG, kindOf, number, pixelRange, text, windowOf} from "./dicom.js";
import {h} from "./dom.js";
import {t} from "./i18n.js";

/** Windows of CT in Hounsfield units: centre, width. */
const PRESETS = {soft: [40, 400], lung: [-600, 1500], bone: [400, 1800], brain: [40, 80]};
const LONGEST = 1024; // pixels of a side: larger pictures arrive smaller

/**
 * A labelled slider with a number field.
 * @param {{name: string, label: string, low: number, high: number, value: number, step: number,
 *   suffix: string, oninput: function(number): void}} given
 */
export function slider({name, label, low, high, value, step = 1, suffix = "", oninput}) {
  const output = h("output", {}, `${value}${suffix}`);
  const range = h("input", {
    type: "range",
    name,
    min: low,
    max: high,
    step,
    value,
    oninput: () => {
      output.textContent = `${range.value}${suffix}`;
      range.setAttribute("aria-valuetext", output.textContent);
      oninput(Number(range.value));
    },
  });
  const made = h("label", {class: "slider"}, h("span", {}, label), range, output);
  made.set = (next) => {
    range.value = next;
    output.textContent = `${range.value}${suffix}`;
  };
  return made;
}

export class ImagePreview extends HTMLElement {
  #uids = [];
  #dataset = null;
  #frame = 1;
  #window = null; // the one that was chosen; null: as stored
  #asked = ""; // the URL that is loading
  #wanted = ""; // the URL to show
  #image = h("img", {class: "picture", alt: t("preview"), draggable: "false"});
  #stage = h("div", {class: "stage"}, this.#image);
  #controls = h("div", {class: "controls"});
  #shape = ""; // controls are kept while they fit

  /** Shows another instance. The window stays while the instances are alike. */
  show(uids, dataset) {
    this.#uids = uids;
    this.#dataset = dataset;
    this.#frame = 1;
    const kind = kindOf(dataset);
    const shape = [
      kind,
      uids[1],
      number(dataset, TAG.frames, 1),
      text(dataset, TAG.photometric),
      JSON.stringify(pixelRange(dataset)),
    ].join();
    if (kind !== "picture") {
      this.#shape = shape;
      this.replaceChildren(this.#other(kind));
      return;
    }
    if (shape !== this.#shape) {
      this.#shape = shape;
      this.#window = null;
      this.replaceChildren(this.#stage, this.#controls);
      this.#drawControls();
    }
    this.#image.alt = `${t("preview")}: ${t("instanceN", {n: text(dataset, TAG.instanceNumber) || "?"})}`;
    this.#render();
  }

  #other(kind) {
    const url = resource(this.#uids, "rendered");
    if (kind === "video") return h("video", {src: url, controls: true, class: "picture"});
    if (kind === "report") return h("iframe", {src: url, title: t("preview"), class: "report", sandbox: ""});
    if (kind === "document")
      return h(
        "p",
        {class: "state"},
        h("a", {class: "button main", href: url, target: "_blank", rel: "noopener"}, t("openDocument")),
      );
    return h("p", {class: "state dim"}, t("noPreview"));
  }

  get #grey() {
    return (
      number(this.#dataset, TAG.samples, 1) === 1 && /^MONOCHROME/.test(text(this.#dataset, TAG.photometric))
    );
  }

  #drawControls() {
    this.#controls.replaceChildren();
    const frames = number(this.#dataset, TAG.frames, 1);
    if (frames > 1)
      this.#controls.append(
        slider({
          name: "frame",
          label: t("frame"),
          low: 1,
          high: frames,
          value: 1,
          suffix: ` / ${frames}`,
          oninput: (value) => {
            this.#frame = value;
            this.#render();
          },
        }),
      );
    this.#stage.classList.toggle("grey", this.#grey);
    if (!this.#grey) return;
    const {low, high} = pixelRange(this.#dataset);
    const start = windowOf(this.#dataset) ?? {
      center: Math.round((low + high) / 2),
      width: Math.round(high - low),
    };
    const step = high - low > 20 ? 1 : (high - low) / 1000;
    const change = (part) => (value) => this.#setWindow({...(this.#window ?? start), [part]: value});
    const center = slider({
      name: "center",
      label: t("center"),
      low: Math.floor(low),
      high: Math.ceil(high),
      step,
      value: start.center,
      oninput: change("center"),
    });
    const width = slider({
      name: "width",
      label: t("width"),
      low: step,
      high: Math.ceil(high - low),
      step,
      value: start.width,
      oninput: change("width"),
    });
    this.#show = (window) => {
      center.set((window ?? start).center);
      width.set((window ?? start).width);
    };
    const preset = (key, window) =>
      h(
        "button",
        {
          type: "button",
          class: "quiet small",
          onclick: () => {
            this.#show(window);
            this.#setWindow(window);
          },
        },
        t(key),
      );
    const presets =
      text(this.#dataset, TAG.modality) === "CT"
        ? Object.entries(PRESETS).map(([key, [c, w]]) => preset(key, {center: c, width: w}))
        : [];
    this.#controls.append(
      center,
      width,
      h("div", {class: "row", role: "group", "aria-label": t("preset")}, preset("stored", null), presets),
      h("p", {class: "dim hint"}, t("dragHint")),
    );
    this.#stage.onpointerdown = (event) => this.#drag(event, start, high - low);
  }

  #show = () => {};

  #setWindow(window) {
    this.#window = window;
    this.#render();
  }

  /** Left and right change the width, up and down the centre, as on workstations. */
  #drag(event, start, range) {
    event.preventDefault();
    const from = this.#window ?? start,
      {clientX, clientY} = event,
      scale = Math.max(from.width, range / 100) / 300;
    this.#stage.setPointerCapture(event.pointerId);
    this.#stage.onpointermove = (moved) => {
      const window = {
        center: Math.round(from.center + (moved.clientY - clientY) * scale),
        width: Math.max(1, Math.round(from.width + (moved.clientX - clientX) * scale)),
      };
      this.#show(window);
      this.#setWindow(window);
    };
    this.#stage.onpointerup = this.#stage.onpointercancel = () => {
      this.#stage.onpointermove = null;
    };
  }

  /** One picture loads at a time; of those that were wanted meanwhile only the last one is loaded. */
  #render() {
    const large = Math.max(number(this.#dataset, TAG.rows), number(this.#dataset, TAG.columns)) > LONGEST;
    const query = new URLSearchParams({accept: "image/jpeg"});
    if (this.#window) query.set("window", `${this.#window.center},${this.#window.width},linear`);
    if (large) query.set("viewport", `${LONGEST},${LONGEST}`);
    this.#wanted = resource(this.#uids, `frames/${this.#frame}/rendered?${query}`);
    if (!this.#asked) this.#next();
  }

  async #next() {
    while (this.#wanted && this.#wanted !== this.#asked) {
      this.#asked = this.#wanted;
      const loaded = new Image();
      loaded.src = this.#asked;
      try {
        await loaded.decode();
        this.#image.src = this.#asked;
        this.#stage.replaceChildren(this.#image);
      } catch {
        if (this.#asked === this.#wanted)
          this.#stage.replaceChildren(
            h(
              "p",
              {class: "state", role: "status"},
              t("error", {reason: (await reasonOf(this.#asked)) || t("noPicture")}),
            ),
          );
      }
    }
    this.#asked = "";
  }
}

customElements.define("image-preview", ImagePreview);
