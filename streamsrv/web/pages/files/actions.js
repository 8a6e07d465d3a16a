/** The buttons of a study, series or instance: viewers, share, download, copy, delete. */

import {linkOf, remove, zipOf} from "./api.js";
import {announce, confirmed, copy, h} from "./dom.js";
import {reason} from "./faults.js";
import {instances, t} from "./i18n.js";
import {shareStudy} from "./share.js";

const DELETE = ["", "deleteStudy", "deleteSeries", "deleteInstance"];

/**
 * @param {string[]} uids of the study, and perhaps of series and instance
 * @param {{facts: Object, title: string, count: number, gone: function(): void}} given `title` and `count` say
 *   in the question what is deleted; `gone` is called after the deletion.
 */
export function actionsOf(uids, {facts, title, count, gone}) {
  const uid = uids.at(-1);
  const button = (key, onclick, kind = "quiet") =>
    h("button", {type: "button", class: kind, onclick, "aria-label": `${t(key)}: ${title}`}, t(key));
  const single = uids.length === 3;
  const {read, share} = facts.allowed;
  const viewers = uids.length === 1 && read ? facts.viewers : [];
  return h(
    "div",
    {class: "row actions"},
    viewers.map(({name, url}) =>
      h(
        "a",
        {class: "button main", href: url.replace("{study}", encodeURIComponent(uids[0]))},
        t("openIn", {viewer: name}),
      ),
    ),
    uids.length === 1 && share && facts.signIn.needed ? button("share", () => shareStudy(uid, title)) : null,
    read
      ? h(
          "a",
          {
            class: "button quiet",
            "aria-label": `${t(single ? "file" : "zip")}: ${title}`,
            download: `${uid}${single ? ".dcm" : ".zip"}`,
            href: single
              ? `${linkOf(...uids)}?accept=${encodeURIComponent("application/dicom;transfer-syntax=*")}`
              : zipOf(...uids),
          },
          t(single ? "file" : "zip"),
        )
      : null,
    button("copyUid", () => copied(uid)),
    button("copyUrl", () => copied(linkOf(...uids))),
    facts.allowed.delete ? button("delete", () => ask(uids, title, count, gone), "quiet danger-text") : null,
  );
}

async function copied(text) {
  await copy(text);
  announce(t("copied", {text}));
}

async function ask(uids, title, count, gone) {
  const yes = await confirmed({
    title: t(DELETE[uids.length]),
    text: t("deleteText", {what: title, n: instances(count)}),
    yes: t("delete"),
    no: t("keep"),
  });
  if (!yes) return;
  try {
    await remove(...uids);
    announce(t("deleted"));
  } catch (error) {
    announce(t("error", {reason: reason(error)}));
    return;
  }
  gone();
}
