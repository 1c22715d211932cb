// Fails unless the committed bundle is exactly what this source builds, draws every kind of figure that
// vesalius.figures makes, asks nothing of another host, and stays small (`npm run verify`).
import { readFileSync, readdirSync } from "node:fs";
import { gzipSync } from "node:zlib";

const [built, committed] = ["dist", "../src/vesalius/figures/static"];
const LARGEST = 160; // KiB, compressed

const faults = [
  told("the committed bundle is not what the source builds; run npm run build", differing()),
  told("figures without a component in FigureView.svelte", undrawn()),
  told("addresses of other hosts in the bundle", addresses()),
  told(`KiB compressed, more than ${LARGEST}`, heavy()),
].filter(Boolean);

if (faults.length) {
  console.error(faults.join("\n"));
  process.exit(1);
}
console.log("the committed bundle is what the source builds");

function told(what, found) {
  return found.length ? `${what}: ${found.join(", ")}` : "";
}

function differing() {
  return readdirSync(built).filter((name) => {
    try {
      return !readFileSync(`${built}/${name}`).equals(readFileSync(`${committed}/${name}`));
    } catch {
      return true;
    }
  });
}

function undrawn() {
  const exported = readFileSync("../src/vesalius/figures/__init__.py", "utf8").split("__all__")[1];
  const kinds = [...exported.matchAll(/"([a-z]+)"/g)].map(([, kind]) => kind);
  const view = readFileSync("src/FigureView.svelte", "utf8");
  return kinds.filter((kind) => !view.includes(`figure.component === "${kind}"`));
}

/** Names of XML and comments are no addresses that a page asks for. */
function addresses() {
  const text = ["vesalius.js", "vesalius.css"].map((name) => readFileSync(`${built}/${name}`, "utf8")).join("\n");
  const asked = [...text.matchAll(/(?:src|href)=["']?https?:[^"'\s]+|@import|url\(["']?https?:[^)]+|\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon/g)];
  return [...new Set(asked.map(([words]) => words))];
}

function heavy() {
  const size = gzipSync(readFileSync(`${built}/vesalius.js`), { level: 9 }).length / 1024;
  return size > LARGEST ? [size.toFixed(0)] : [];
}
