// Builds what is published (dist/); with --serve also what the service itself serves (static/msgpush*.js).
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
const served = { browser: "msgpush.js", "browser-push": "msgpush-push.js", "browser-worker": "msgpush-worker.js" };
for (const [name, file] of Object.entries(served))
  await build({
    ...common,
    absWorkingDir: here("."),
    entryPoints: [`src/${name}.ts`],
    outfile: `dist/${file}`,
    format: "iife",
    minify: true,
    banner: { js: "/*! @msgpush/client, Apache-2.0. Built from clients/js: change it there. */" },
  });
execFileSync(process.execPath, [here("node_modules/typescript/bin/tsc"), "-p", here(".")], { stdio: "inherit" });
if (process.argv.includes("--serve"))
  for (const file of Object.values(served))
    copyFileSync(here(`dist/${file}`), here(`../../src/msgpush/adapters/http/static/${file}`));
