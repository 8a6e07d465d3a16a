/** From the filters of the study list to the parameters of a search (QIDO-RS). */

import {compact} from "./dicom.js";

/** Filter -> attribute that has the text of the filter anywhere. */
const FILTERS = {patient: "PatientID", accession: "AccessionNumber", description: "StudyDescription"};
/** The order of a search without `orderby`. */
export const NEWEST = "-StudyDate";

/** Words of a name in any order; in Chinese, Japanese and Korean its characters, as names have no blanks there. */
function nameParameters(name) {
  if (!name) return {};
  if (/[*?^=]/.test(name)) return {PatientName: name};
  if (/^[\p{sc=Han}\p{sc=Hangul}\p{sc=Hiragana}\p{sc=Katakana}]+$/u.test(name))
    return {PatientName: `*${[...name].join("*")}*`};
  return {PatientName: name, fuzzymatching: "true"};
}

/** The query of a search, from the filters. Wildcards of the user stay. */
export function parametersOf(filters) {
  const found = {};
  for (const [filter, attribute] of Object.entries(FILTERS)) {
    const value = filters[filter]?.trim();
    if (value) found[attribute] = /[*?]/.test(value) ? value : `*${value}*`;
  }
  Object.assign(found, nameParameters(filters.name?.trim() ?? ""));
  if (Object.keys(FILTERS).some((filter) => filters[filter]?.trim())) found.ignorecase = "true";
  if (filters.modality) found.ModalitiesInStudy = filters.modality;
  if (filters.from || filters.to)
    found.StudyDate = `${compact(filters.from ?? "")}-${compact(filters.to ?? "")}`;
  if (filters.order && filters.order !== NEWEST) found.orderby = filters.order;
  return found;
}
