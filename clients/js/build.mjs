// Builds what is published (dist/); with --serve also what the service itself serves (static/msgpush.js).
import { execFileSync } from "node:child_process";
import { copyFileSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const common = { bundle: true, target: "es2022", legalComments: "inline", logLevel: "warning" };

rmSync(here("dist"), { recursive: true, force: true });
await build({
  ...common,
  absWorkingDir: here("."),
  entryPoints: ["index", "tabs", "react", "vue", "push", "push-worker"].map((name) => `src/${name}.ts`),
  outdir: "dist",
  format: "esm",
  splitting: true,
  packages: "external",
});
await build({
  ...common,
  absWorkingDir: here("."),
  entryPoints: ["src/browser.ts"],
  outfile: "dist/msgpush.js",
  format: "iife",
  minify: true,
  banner: { js: "/*! @msgpush/client, Apache-2.0. Built from clients/js: change it there. */" },
});
execFileSync(process.execPath, [here("node_modules/typescript/bin/tsc"), "-p", here(".")], { stdio: "inherit" });
if (process.argv.includes("--serve"))
  copyFileSync(here("dist/msgpush.js"), here("../../src/msgpush/adapters/http/static/msgpush.js"));
