// The libraries below OHIF without OHIF: one page shows a series as a stack (Cornerstone3D) or as a slide
// (dicom-microscopy-viewer), from any DICOMweb root, with any headers.

import * as cornerstone from "@cornerstonejs/core";
import * as loader from "@cornerstonejs/dicom-image-loader";
import * as dicomweb from "dicomweb-client";

const place = document.querySelector("#place");

// The server and the metadata of a series, by dicomweb-client.
async function opened(root, study, series, headers) {
  const url = new URL(root, location).href;
  const client = new dicomweb.api.DICOMwebClient({url, headers});
  const identifiers = {studyInstanceUID: study, seriesInstanceUID: series};
  return {url, client, metadata: await client.retrieveSeriesMetadata(identifiers)};
}

let started;

async function stack(root, study, series, headers = {}) {
  started ??= cornerstone.init();
  await started;
  loader.init({maxWebWorkers: 1, wasmBasePath: "/wasm/", beforeSend: async () => headers});
  const {url, metadata} = await opened(root, study, series, headers);
  const imageIds = metadata.map(instance => {
    const uid = instance["00080018"].Value[0];
    const imageId = `wadors:${url}/studies/${study}/series/${series}/instances/${uid}/frames/1`;
    loader.wadors.metaDataManager.add(imageId, instance);
    return imageId;
  });
  cornerstone.getRenderingEngines()?.forEach(engine => engine.destroy());
  const engine = new cornerstone.RenderingEngine("engine");
  engine.enableElement({viewportId: "stack", element: place, type: cornerstone.Enums.ViewportType.STACK});
  const viewport = engine.getViewport("stack");
  await viewport.setStack(imageIds, 0);
  viewport.render();
  return imageIds.length;
}

async function slide(root, study, series, headers = {}) {
  const {client, metadata} = await opened(root, study, series, headers);
  const library = window.dicomMicroscopyViewer;
  const images = metadata
    .map(each => new library.metadata.VLWholeSlideMicroscopyImage({metadata: each}))
    .filter(each => each.ImageType[2] === "VOLUME");
  place.replaceChildren();
  new library.viewer.VolumeImageViewer({client, metadata: images, controls: []}).render({container: place});
  return images.length;
}

Object.assign(window, {cornerstone, dicomweb, stack, slide});
