/** Reads values of DICOM JSON (PS3.18 Annex F), and writes them for people. */

export const TAG = {
  studyDate: "00080020",
  studyTime: "00080030",
  accession: "00080050",
  modalities: "00080061",
  modality: "00080060",
  referrer: "00080090",
  studyDescription: "00081030",
  seriesDescription: "0008103E",
  name: "00100010",
  patient: "00100020",
  birthDate: "00100030",
  sex: "00100040",
  study: "0020000D",
  series: "0020000E",
  instance: "00080018",
  seriesNumber: "00200011",
  instanceNumber: "00200013",
  sopClass: "00080016",
  syntax: "00083002",
  bodyPart: "00180015",
  seriesInStudy: "00201206",
  instancesInStudy: "00201208",
  instancesInSeries: "00201209",
  frames: "00280008",
  rows: "00280010",
  columns: "00280011",
  samples: "00280002",
  photometric: "00280004",
  bitsStored: "00280101",
  signed: "00280103",
  center: "00281050",
  width: "00281051",
  intercept: "00281052",
  slope: "00281053",
};

/** All values of an attribute; an empty list without one. */
export const values = (dataset, tag) => dataset?.[tag]?.Value ?? [];

/** The first value of an attribute as text. */
export function text(dataset, tag) {
  const [value] = values(dataset, tag);
  return value === undefined || value === null ? "" : plain(value);
}

/** The first value as a number, or `otherwise`. */
export function number(dataset, tag, otherwise = 0) {
  const value = Number(values(dataset, tag)[0]);
  return Number.isFinite(value) && values(dataset, tag).length ? value : otherwise;
}

/** One value as text: a person name with all its groups, anything else as it is. */
export function plain(value) {
  if (value === null || typeof value !== "object") return String(value ?? "");
  const groups = [value.Alphabetic, value.Ideographic, value.Phonetic].filter(Boolean);
  return groups.map(nameOf).join(" · ");
}

/** `Doe^Jane` as `Doe, Jane`, and `王^小东` as `王小东`. */
function nameOf(group) {
  const parts = String(group).split("^").filter(Boolean);
  if (/[\p{sc=Han}\p{sc=Hangul}\p{sc=Hiragana}\p{sc=Katakana}]/u.test(group)) return parts.join("");
  return [parts[0], parts.slice(1).join(" ")].filter(Boolean).join(", ");
}

/** `20240115` as `2024-01-15`; another text as it is. */
export function date(value) {
  return value.replace(/^(\d{4})(\d\d)(\d\d)$/, "$1-$2-$3");
}

/** `101501.25` as `10:15`. */
export function time(value) {
  return value.replace(/^(\d\d)(\d\d).*$/, "$1:$2");
}

/** `2024-01-15` of a date field as `20240115`. */
export const compact = (value) => value.replaceAll("-", "");

/**
 * The values that pixels can have after the modality LUT (PS3.3 C.7.6.3, C.11.1).
 * @returns {{low: number, high: number}}
 */
export function pixelRange(dataset) {
  const bits = number(dataset, TAG.bitsStored, 16);
  const signed = number(dataset, TAG.signed) === 1;
  const slope = number(dataset, TAG.slope, 1) || 1;
  const intercept = number(dataset, TAG.intercept, 0);
  const least = signed ? -(2 ** (bits - 1)) : 0;
  const ends = [least, least + 2 ** bits - 1].map((value) => value * slope + intercept);
  return {low: Math.min(...ends), high: Math.max(...ends)};
}

/** The window of the dataset, of its shared functional groups or of its first frame; null without one. */
export function windowOf(dataset) {
  const groups = [dataset, ...values(dataset, "52009229"), ...values(dataset, "52009230").slice(0, 1)];
  for (const group of groups) {
    for (const item of [group, ...values(group, "00289132")]) {
      if (values(item, TAG.center).length && values(item, TAG.width).length) {
        return {center: number(item, TAG.center), width: number(item, TAG.width)};
      }
    }
  }
  return null;
}

/** The kind of preview that an instance has. */
export function kindOf(dataset) {
  const sopClass = text(dataset, TAG.sopClass);
  const syntax = text(dataset, TAG.syntax);
  if (/^1\.2\.840\.10008\.1\.2\.4\.10[0-8]/.test(syntax)) return "video";
  if (/^1\.2\.840\.10008\.5\.1\.4\.1\.1\.88\./.test(sopClass)) return "report";
  if (/^1\.2\.840\.10008\.5\.1\.4\.1\.1\.104\./.test(sopClass)) return "document";
  return values(dataset, TAG.rows).length ? "picture" : "none";
}
