/** The dialog that shares a study: a link with an end, perhaps with a PIN, and the links that there are. */

import {endShare, share, shares} from "./api.js";
import {announce, copy, h} from "./dom.js";
import {reason} from "./faults.js";
import {current, t} from "./i18n.js";

const PERIODS = {"1h": "hour1", "1d": "day1", "7d": "day7", "30d": "day30"};

/** Opens the dialog for a study. `title` names it. */
export function shareStudy(study, title) {
  const made = h("div", {class: "made", role: "status"});
  const known = h("div", {class: "known"});
  const period = h(
    "select",
    {name: "expires"},
    Object.entries(PERIODS).map(([value, key]) => h("option", {value, selected: value === "7d"}, t(key))),
  );
  const pin = h("input", {type: "checkbox", name: "pin", checked: true});
  const submit = h("button", {class: "main"}, t("shareMake"));
  const form = h(
    "form",
    {
      class: "share-form",
      onsubmit: async (event) => {
        event.preventDefault();
        submit.disabled = true;
        try {
          made.replaceChildren(...result(await share(study, {expires: period.value, pin: pin.checked})));
          made.querySelector("button").focus();
          await list(study, known);
        } catch (error) {
          made.replaceChildren(h("p", {class: "bad"}, t("error", {reason: reason(error)})));
        }
        submit.disabled = false;
      },
    },
    h("label", {class: "field"}, h("span", {}, t("shareEnds")), period),
    h("label", {class: "check"}, pin, h("span", {}, t("sharePin"))),
    h("div", {class: "row"}, submit),
  );
  const dialog = h(
    "dialog",
    {"aria-labelledby": "share-title", class: "share"},
    h("h2", {id: "share-title"}, t("shareTitle")),
    h("p", {class: "study-name"}, title),
    h("p", {class: "dim"}, t("shareText")),
    form,
    made,
    known,
    h("form", {method: "dialog", class: "row end"}, h("button", {class: "quiet close"}, t("close"))),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  list(study, known);
}

function result({url, pin}) {
  const field = (name, label, value) =>
    h(
      "div",
      {class: "copied-field"},
      h(
        "label",
        {class: "field"},
        h("span", {}, label),
        h("input", {name, value, readonly: true, onfocus: (event) => event.target.select()}),
      ),
      h(
        "button",
        {type: "button", "aria-label": `${t("copy")}: ${label}`, onclick: () => copied(value, label)},
        t("copy"),
      ),
    );
  return [
    field("link", t("shareLink"), url),
    ...(pin ? [field("pin-shown", t("sharePinIs"), pin)] : []),
    h("p", {class: "dim hint"}, t("shareOnce")),
  ];
}

async function copied(value, label) {
  await copy(value);
  announce(t("copied", {text: label}));
}

async function list(study, place) {
  let found;
  try {
    found = await shares(study);
  } catch (error) {
    place.replaceChildren(h("p", {class: "bad"}, t("error", {reason: reason(error)})));
    return;
  }
  if (!found.length) {
    place.replaceChildren();
    return;
  }
  place.replaceChildren(
    h("h3", {}, t("shareList")),
    h(
      "ul",
      {},
      found.map(({id, expires, pin, by}) => {
        const ends = t("shareUntil", {date: new Date(expires).toLocaleString(current())});
        const words = [ends, pin ? t("shareHasPin") : "", by ? t("shareBy", {user: by.replace(/^\w+:/, "")}) : ""];
        const text = words.filter(Boolean).join(" · ");
        return h(
          "li",
          {class: "row spread"},
          h("span", {}, text),
          h(
            "button",
            {
              type: "button",
              class: "small danger-text",
              "aria-label": `${t("shareEnd")}: ${text}`,
              onclick: () => ended(study, id, place),
            },
            t("shareEnd"),
          ),
        );
      }),
    ),
  );
}

async function ended(study, id, place) {
  try {
    await endShare(study, id);
    announce(t("shareEnded"));
  } catch (error) {
    announce(t("error", {reason: reason(error)}));
  }
  await list(study, place);
  place.closest("dialog").querySelector("button.close").focus();
}
