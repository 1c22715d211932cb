// Fails unless the committed bundle is exactly what this source builds (`npm run verify`).
import { readFileSync, readdirSync } from "node:fs";

const [built, committed] = ["dist", "../src/vesalius/figures/static"];
const differing = readdirSync(built).filter((name) => {
  try {
    return !readFileSync(`${built}/${name}`).equals(readFileSync(`${committed}/${name}`));
  } catch {
    return true;
  }
});
if (differing.length) {
  console.error(`the committed bundle is not what the source builds: ${differing.join(", ")}; run npm run build`);
  process.exit(1);
}
console.log("the committed bundle is what the source builds");
