import { readFile, stat } from 'node:fs/promises'
import { badFormat, fileError, show } from '../errors.js'

/** Largest configuration file that is read, in bytes. Real ones are under 100 kB. */
const maxConfigBytes = 16 * 1024 * 1024

/**
 * `JSON.parse` for files of unknown origin: UTF-8 is checked, keys repeated within an object and
 * nesting deeper than `maxDepth` are refused (JSON.parse keeps the last of repeated keys in silence).
 * A key `__proto__` stays an own property, as JSON.parse defines it: copy entries to a Map.
 */
export function parseJson(bytes: Uint8Array, file: string, what: string, maxDepth = 32): unknown {
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch (cause) {
    throw badFormat(file, `${what} is not UTF-8 text`, cause)
  }
  try {
    const problem = scanJson(text, maxDepth)
    if (problem !== undefined) throw badFormat(file, `${what} ${problem}`)
    return JSON.parse(text)
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause
    throw badFormat(file, `${what} is not valid JSON: ${cause.message}`, cause)
  }
}

/** Reads and parses a configuration file; `undefined` when there is none. */
export async function readJson(file: string, signal?: AbortSignal): Promise<unknown> {
  let bytes: Uint8Array
  try {
    const { size } = await stat(file)
    if (size > maxConfigBytes) {
      throw badFormat(file, `it has ${size} bytes; a configuration has at most ${maxConfigBytes}`)
    }
    bytes = await readFile(file, signal === undefined ? {} : { signal })
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw fileError(file, 'read', cause)
  }
  return parseJson(bytes, file, 'the file')
}

/**
 * What JSON.parse does not tell, found in one pass over the text. It need not understand malformed
 * text: JSON.parse refuses that afterwards. Throws a SyntaxError for a malformed key.
 */
function scanJson(text: string, maxDepth: number): string | undefined {
  const open: (Set<string> | undefined)[] = [] // keys so far of each open object; undefined: array
  for (let i = 0; i < text.length; ++i) {
    switch (text[i]) {
      case '{':
      case '[':
        open.push(text[i] === '{' ? new Set() : undefined)
        if (open.length > maxDepth) return `is nested deeper than ${maxDepth} levels`
        break
      case '}':
      case ']':
        open.pop()
        break
      case '"': {
        const start = i
        for (++i; i < text.length && text[i] !== '"'; ++i) if (text[i] === '\\') ++i
        let next = i + 1
        while (' \t\r\n'.includes(text[next] ?? '.')) ++next
        if (text[next] !== ':') break
        const key: string = JSON.parse(text.slice(start, i + 1))
        const keys = open.at(-1)
        if (keys?.has(key)) return `has the key ${show(key)} twice`
        keys?.add(key)
      }
    }
  }
  return undefined
}
