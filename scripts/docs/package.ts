// The package's import paths, and the reference made from them.

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { type EntryPoint, readDeclarations } from './declarations.js'

export const root = fileURLToPath(new URL('../..', import.meta.url))

/** Where the pages are. */
export const folder = path.join(root, 'docs/api')

/** What package.json's `exports` offers, read from dist/, which has to be built. */
export function entryPoints(): EntryPoint[] {
  const { name, exports } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')) as {
    name: string
    exports: Record<string, string | { require?: { types: string } }>
  }
  const entries = Object.entries(exports).flatMap(([key, conditions]) => {
    const file = typeof conditions === 'string' ? undefined : conditions.require?.types
    return file === undefined ? [] : [{ specifier: path.posix.join(name, key), file }]
  })
  return readDeclarations(root, entries)
}
