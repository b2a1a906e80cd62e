// stdin: a JSON list of scripts. The answer: each as TypeScript prints it, without comments, with indentation of its own.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'

const ts = createRequire(import.meta.url)(process.argv[2])
/** @type {string[]} */
const scripts = JSON.parse(readFileSync(0, 'utf8'))
const options = { removeComments: true, target: ts.ScriptTarget.ESNext }
process.stdout.write(JSON.stringify(scripts.map(code => ts.transpileModule(code, { compilerOptions: options }).outputText)))
