/** Errors of calls as sentences. */

import {Problem} from "./api.js";
import {h} from "./dom.js";
import {t} from "./i18n.js";

/** The sentence for an error of a call. */
export function reason(error) {
  if (!(error instanceof Problem)) return error.message;
  return error.status === 401 ? t("signInAgain") : error.status ? error.message : t("network");
}

/** A message in place of content, with a button that tries again. */
export const failure = (error, again) =>
  h(
    "div",
    {class: "state", role: "alert"},
    h("p", {class: "bad"}, t("error", {reason: reason(error)})),
    h("button", {type: "button", onclick: again}, t("tryAgain")),
  );
