/** Small helpers for elements. Text always becomes a text node, never HTML. */

/**
 * Makes an element.
 * @param {string} tag
 * @param {Object<string, any>} properties `class`, `onclick` and other listeners, ARIA and other attributes.
 *   false, null and undefined leave an attribute out; true sets an empty one.
 * @param {...(Node|string|number|null|false|Array)} children
 * @returns {HTMLElement}
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined)
      element.setAttribute(name, value === true ? "" : value);
  }
  element.append(
    ...children
      .flat(3)
      .filter((child) => child !== null && child !== undefined && child !== false)
      .map((child) => (child instanceof Node ? child : String(child))),
  );
  return element;
}

/** Calls `call` once, `milliseconds` after the last of many calls. */
export function debounced(call, milliseconds) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), milliseconds);
  };
}

/** Shows a short message, which screen readers read too. */
export function announce(text) {
  const place = document.getElementById("messages");
  const message = h("p", {}, text);
  place.append(message);
  setTimeout(() => message.remove(), 4000);
}

/**
 * Asks a question in a modal dialog.
 * @param {{title: string, text: string, yes: string, no: string}} words
 * @returns {Promise<boolean>}
 */
export function confirmed({title, text, yes, no}) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog",
      {"aria-labelledby": "question", class: "question"},
      h("h2", {id: "question"}, title),
      h("p", {}, text),
      h(
        "form",
        {method: "dialog", class: "row end"},
        h("button", {class: "quiet", value: "no", autofocus: true}, no),
        h("button", {class: "danger", value: "yes"}, yes),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Copies a text to the clipboard. Without TLS browsers offer only the older way. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return;
  } catch {
    // Not offered, or not allowed.
  }
  const field = h("textarea", {class: "off-screen", readonly: true});
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}
