// `npm run docs`: docs/api from the doc comments.

import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { renderPages } from './markdown.js'
import { entryPoints, folder } from './package.js'

const pages = renderPages(entryPoints())
mkdirSync(folder, { recursive: true })
for (const name of readdirSync(folder)) rmSync(path.join(folder, name))
for (const [name, text] of pages) writeFileSync(path.join(folder, name), text)
console.log(`${path.relative(process.cwd(), folder)}: ${[...pages.keys()].join(', ')}`)
