/** Files and folders that are dropped anywhere on the page. */

import {filesIn} from "./upload-panel.js";

/**
 * `element` has the class `dropping` while files are over the page.
 * @param {HTMLElement} element
 * @param {{allowed: function(): boolean, take: function(Promise<Object[]>): void}} given
 */
export function takeDrops(element, {allowed, take}) {
  let inside = 0;
  const shown = (on) => element.classList.toggle("dropping", on);
  const carriesFiles = (event) => allowed() && [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragenter", (event) => {
    if (!carriesFiles(event)) return;
    inside += 1;
    shown(true);
  });
  addEventListener("dragleave", (event) => {
    if (!carriesFiles(event)) return;
    inside -= 1;
    shown(inside > 0);
  });
  addEventListener("dragover", (event) => {
    if (carriesFiles(event)) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    inside = 0;
    shown(false);
    take(filesIn(event.dataTransfer)); // begins before the event ends, when the items vanish
  });
}
