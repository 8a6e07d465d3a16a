/** One row of the study list. On a narrow screen each cell shows its label, from `data-label`. */

import {h} from "./dom.js";
import {TAG, date, text, time, values} from "./dicom.js";
import {t} from "./i18n.js";

/** @param {Object} study a result of a search, as DICOM JSON */
export function row(study) {
  const link = `#/studies/${encodeURIComponent(text(study, TAG.study))}`;
  const cell = (key, label, ...content) => h("td", {class: key, "data-label": label}, ...content);
  return h(
    "tr",
    {
      onclick: (event) => {
        if (!event.target.closest("a") && !String(getSelection())) location.hash = link;
      },
    },
    cell("name", t("name"), h("a", {href: link}, text(study, TAG.name) || t("noName"))),
    cell("patient", t("patient"), text(study, TAG.patient)),
    cell(
      "date",
      t("date"),
      h("span", {class: "nowrap"}, date(text(study, TAG.studyDate))),
      " ",
      h("span", {class: "dim"}, time(text(study, TAG.studyTime))),
    ),
    cell(
      "modality",
      t("modality"),
      values(study, TAG.modalities).map((each) => h("span", {class: "tag"}, each)),
    ),
    cell("description", t("description"), text(study, TAG.studyDescription)),
    cell("accession", t("accession"), text(study, TAG.accession)),
    cell("count", t("seriesCount"), text(study, TAG.seriesInStudy)),
    cell("count", t("instanceCount"), text(study, TAG.instancesInStudy)),
  );
}
