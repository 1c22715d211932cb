import { existsSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig, type Plugin } from "vite";

/** Makes the module safe to stand inside a `<script>` element: Svelte's templates hold `<!---->`. */
function inlinable(): Plugin {
  return {
    name: "inlinable",
    generateBundle(_, bundle) {
      for (const file of Object.values(bundle)) {
        if (file.type !== "chunk") continue;
        file.code = file.code.replaceAll("<!--", "<\\!--").replaceAll(/<(\/?script)/g, (_, tag) => `<\\x${tag.charCodeAt(0).toString(16)}${tag.slice(1)}`);
      }
    },
  };
}

/** Writes the licences of every package in the bundle beside it. */
function licences(): Plugin {
  return {
    name: "licences",
    generateBundle(_, bundle) {
      const packages = new Set<string>();
      for (const file of Object.values(bundle)) {
        if (file.type !== "chunk") continue;
        for (const id of Object.keys(file.modules)) {
          const found = id.replaceAll("\\", "/").match(/^.*node_modules\/((?:@[^/]+\/)?[^/]+)\//);
          if (found) packages.add(found[0]);
        }
      }
      const texts = [...packages].sort().map((folder) => {
        const about = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
        const file = readdirSync(folder).find((name) => /^licen[cs]e/i.test(name));
        const text = file && existsSync(join(folder, file)) ? readFileSync(join(folder, file), "utf8").trim() : "";
        return `${about.name} ${about.version} (${about.license})\n\n${text}\n`;
      });
      this.emitFile({ type: "asset", fileName: "LICENSES.txt", source: texts.join(`\n${"-".repeat(80)}\n\n`) });
    },
  };
}

export default defineConfig({
  plugins: [svelte({ compilerOptions: { runes: true } }), inlinable(), licences()],
  build: {
    target: "es2022",
    outDir: "../src/vesalius/figures/static",
    emptyOutDir: true,
    cssCodeSplit: false,
    modulePreload: false,
    reportCompressedSize: true,
    rollupOptions: {
      input: "src/main.ts",
      preserveEntrySignatures: "strict",
      output: { format: "es", entryFileNames: "vesalius.js", assetFileNames: "vesalius[extname]", codeSplitting: false },
    },
  },
});
