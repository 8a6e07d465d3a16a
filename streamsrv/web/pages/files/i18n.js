/** The language of the page: that of the browser, or the one that was chosen, which is remembered. */

import {WORDS} from "./words.js";

const KEY = "streamsrv.language";
let language = remembered() || (/^zh\b/i.test(navigator.language) ? "zh" : "en");

function remembered() {
  try {
    const found = localStorage.getItem(KEY);
    return found in WORDS ? found : null;
  } catch {
    return null; // storage is not allowed
  }
}

/** `en` or `zh`. */
export const current = () => language;

/** Switches to the other language and remembers it. */
export function switchLanguage() {
  language = language === "en" ? "zh" : "en";
  try {
    localStorage.setItem(KEY, language);
  } catch {
    // The choice lasts until the page is loaded again.
  }
}

/** The text of a key in the current language. Numbers are written as the language does. */
export function t(key, parameters = {}) {
  return WORDS[language][key].replace(/\{(\w+)\}/g, (_, name) => shown(parameters[name]));
}

const shown = (value) => (typeof value === "number" ? value.toLocaleString(language) : String(value ?? ""));

/** "1 instance", "12 instances". */
export const instances = (n) => (n === 1 ? t("instanceOne") : t("instancesN", {n}));
