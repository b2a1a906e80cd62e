// Reads a JSON list of scripts from stdin; prints each as TypeScript does, without comments, indented its way.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'

const ts = createRequire(import.meta.url)(process.argv[2])
/** @type {string[]} */
const scripts = JSON.parse(readFileSync(0, 'utf8'))
const options = { removeComments: true, target: ts.ScriptTarget.ESNext }
const printed = scripts.map(code => ts.transpileModule(code, { compilerOptions: options }).outputText)
process.stdout.write(JSON.stringify(printed))
