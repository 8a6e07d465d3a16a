// Calls dicomweb-client as viewers do. Its path is the first argument, what to ask for comes as JSON on standard
// input, what was found goes out as JSON; bytes as hex.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

// Of XMLHttpRequest what the client uses.
class XMLHttpRequest {
  constructor() {
    this.headers = {};
    this.readyState = 0;
    this.upload = {};
  }
  open(method, url) {
    this.method = method;
    this.url = url;
  }
  setRequestHeader(name, value) {
    this.headers[name] = value;
  }
  getResponseHeader(name) {
    return this.answer.headers.get(name);
  }
  getAllResponseHeaders() {
    return [...this.answer.headers].map(([name, value]) => `${name}: ${value}`).join("\r\n");
  }
  async send(body) {
    this.answer = await fetch(this.url, { method: this.method, headers: this.headers, body });
    this.status = this.answer.status;
    this.statusText = this.answer.statusText;
    const bytes = await this.answer.arrayBuffer();
    if (this.responseType === "arraybuffer") {
      this.response = bytes;
    } else {
      const text = new TextDecoder().decode(bytes);
      this.response = this.responseType === "json" ? (text ? JSON.parse(text) : null) : text;
      this.responseText = text;
    }
    this.readyState = 4;
    this.onloadend?.();
    this.onreadystatechange?.();
  }
}
globalThis.XMLHttpRequest = XMLHttpRequest;

const { api } = createRequire(import.meta.url)(process.argv[2]);
const asked = JSON.parse(readFileSync(0, "utf8"));
const hex = (buffer) => Buffer.from(buffer).toString("hex");
const named = ([studyInstanceUID, seriesInstanceUID, sopInstanceUID]) => ({
  studyInstanceUID,
  seriesInstanceUID,
  sopInstanceUID,
});
const ct = named(asked.ct);
const slide = named(asked.slide);
const client = new api.DICOMwebClient({ url: asked.url });
const found = {};

const queryParams = { PatientName: "doe*", limit: 10 };
found.studies = await client.searchForStudies({ queryParams });
found.everything = await client.searchForStudies();
found.nothing = await client.searchForStudies({ queryParams: { PatientName: "nobody" } });
found.series = await client.searchForSeries(ct);
found.instances = await client.searchForInstances(ct);

found.studyMetadata = await client.retrieveStudyMetadata(ct);
found.seriesMetadata = await client.retrieveSeriesMetadata(ct);
found.instanceMetadata = [await client.retrieveInstanceMetadata(ct)].flat();

found.instance = hex(await client.retrieveInstance(ct));
found.seriesInstances = (await client.retrieveSeries(ct)).map(hex);
found.studyInstances = (await client.retrieveStudy(ct)).map(hex);

found.frame = (await client.retrieveInstanceFrames({ ...ct, frameNumbers: [1] })).map(hex);
const mediaTypes = [{ mediaType: "image/jpeg", transferSyntaxUID: "1.2.840.10008.1.2.4.50" }];
found.tiles = (await client.retrieveInstanceFrames({ ...slide, frameNumbers: [2, 4], mediaTypes })).map(hex);
const one = async (answer) => hex([await answer].flat()[0]);
const jpeg = [{ mediaType: "image/jpeg" }];
const png = [{ mediaType: "image/png" }];
found.rendered = await one(client.retrieveInstanceRendered({ ...ct, mediaTypes: jpeg }));
found.renderedFrame = await one(
  client.retrieveInstanceFramesRendered({ ...slide, frameNumbers: [1], mediaTypes: png }),
);

const [palette] = [await client.retrieveInstanceMetadata(named(asked.palette))].flat();
const BulkDataURI = palette["00281201"].BulkDataURI;
found.bulk = [await client.retrieveBulkData({ BulkDataURI })].flat().map(hex);

const writable = new api.DICOMwebClient({ url: asked.writable });
await writable.storeInstances({ datasets: [new Uint8Array(Buffer.from(asked.file, "hex")).buffer] });
found.storedThen = (await writable.searchForInstances(ct)).length;

try {
  await client.retrieveInstanceMetadata({ ...ct, sopInstanceUID: "1.2.3" });
} catch (error) {
  found.missing = error.status;
}
console.log(JSON.stringify(found));
