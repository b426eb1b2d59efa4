// From what people call a class to its number.

import type { DiT } from '../dit.js'
import { editDistance, nearness, synonyms } from '../labels.js'
import { HttpError } from './errors.js'

/** A class, as `GET /v1/models/:id/classes` lists it. */
export interface ClassEntry {
  id: number
  name: string
}

interface Synonym {
  id: number
  name: string
  /** One of the comma-separated names, in lower case. */
  text: string
  words: string[]
}

/** The classes of one model. @internal */
export class Classes {
  readonly #all: readonly ClassEntry[]
  readonly #synonyms: readonly Synonym[]
  readonly #numClasses: number
  /** The highest number: that of no class, for models that have it. */
  readonly #last: number

  constructor({ config, classNames }: Pick<DiT, 'config' | 'classNames'>) {
    this.#numClasses = config.numClasses
    this.#last = config.nullClass ? config.numClasses : config.numClasses - 1
    this.#all = Array.from({ length: config.numClasses }, (_, id) => {
      return { id, name: classNames[id] ?? `class ${id}` }
    })
    this.#synonyms = Object.entries(classNames).flatMap(([id, name]) => {
      return synonyms(name).map((text) => ({ id: Number(id), name, text, words: wordsOf(text) }))
    })
  }

  nameOf(id: number): string | undefined {
    return this.#all[id]?.name
  }

  /** By number or name; the name exactly, ignoring case, or as one of its synonyms. Throws 400 or 422. */
  find(label: number | string): number {
    if (typeof label === 'number') {
      if (Number.isInteger(label) && label >= 0 && label <= this.#last) return label
      const none = this.#last === this.#numClasses ? `, or ${this.#last} for no class` : ''
      throw new HttpError(
        400,
        'ERR_DIT_OPTION',
        `Expected a class from 0 to ${this.#numClasses - 1}${none}, for labels but got ${label}`,
      )
    }
    const found = this.#called(label)
    if (found.length === 1) return found[0]?.id as number
    throw this.#unknown(label, found)
  }

  /**
   * The class that a prompt names: as `find`; else a number; else the longest name among its words ('a
   * photo of a tabby cat'); else a name with a letter or two wrong. Throws 422 with suggestions.
   */
  match(prompt: string): number {
    const called = this.#called(prompt)
    if (called.length > 0) {
      if (called.length === 1) return called[0]?.id as number
      throw this.#unknown(prompt, called)
    }
    const [, digits] = /^\s*(?:class\s+)?(\d{1,9})\s*$/i.exec(prompt) ?? []
    if (digits !== undefined && Number(digits) <= this.#last) return Number(digits)
    const within = this.#within(prompt)
    if (within.length === 1) return within[0]?.id as number
    const near = within.length > 0 ? within : this.#almost(prompt)
    if (near.length === 1) return near[0]?.id as number
    throw this.#unknown(prompt, near)
  }

  /** Classes whose names fit a text, the best first; all of them for an empty one. */
  search(text: string, limit: number): ClassEntry[] {
    const wanted = text.trim().toLowerCase()
    if (wanted === '') return this.#all.slice(0, limit)
    const words = wordsOf(wanted)
    const scored = this.#all.flatMap((entry) => {
      const score = scoreOf(entry, wanted, words)
      return score === undefined ? [] : [{ entry, score }]
    })
    const sorted = scored.sort((a, b) => a.score - b.score || a.entry.id - b.entry.id)
    return sorted.slice(0, limit).map(({ entry }) => entry)
  }

  #called(label: string): ClassEntry[] {
    const wanted = label.trim().toLowerCase()
    const ways: ((one: Synonym) => boolean)[] = [
      ({ name }) => name === label,
      ({ name }) => name.toLowerCase() === wanted,
      ({ text }) => text === wanted,
    ]
    for (const matches of ways) {
      const found = distinct(this.#synonyms.filter(matches))
      if (found.length > 0) return found
    }
    return []
  }

  /** The classes of the longest names that stand in a text word by word. */
  #within(text: string): ClassEntry[] {
    const words = ` ${wordsOf(text).join(' ')} `
    const found = this.#synonyms.filter(
      (one) => one.words.length > 0 && words.includes(` ${one.words.join(' ')} `),
    )
    const longest = Math.max(...found.map((one) => one.words.join(' ').length))
    return distinct(found.filter((one) => one.words.join(' ').length === longest))
  }

  #almost(text: string): ClassEntry[] {
    const wanted = text.trim().toLowerCase()
    const allowed = wanted.length < 4 ? 0 : wanted.length < 8 ? 1 : 2
    return distinct(
      this.#synonyms.filter((one) => {
        return (
          Math.abs(one.text.length - wanted.length) <= allowed &&
          editDistance(wanted, one.text) <= allowed
        )
      }),
    )
  }

  #unknown(label: string, several: readonly ClassEntry[]): HttpError {
    const shown = label.length > 60 ? `${label.slice(0, 57)}...` : label
    const suggestions = several.length > 0 ? several.slice(0, 5) : this.#suggest(label)
    const message =
      several.length > 1
        ? `Several classes fit '${shown}'`
        : this.#synonyms.length === 0
          ? `This model came without class names: give a number from 0 to ${this.#numClasses - 1}`
          : `No class is called '${shown}'`
    return new HttpError(422, 'ERR_DIT_OPTION', message, { suggestions })
  }

  #suggest(label: string): ClassEntry[] {
    const wanted = label.slice(0, 60).trim().toLowerCase()
    if (wanted === '') return []
    const words = wordsOf(wanted).filter((word) => word.length > 2)
    const most = Math.max(2, wanted.length / 3)
    const near = this.#synonyms.flatMap((one) => {
      const shared = words.some((word) => one.words.includes(word))
      const distance = shared ? 1 : nearnessWithin(wanted, one.text, most)
      return distance <= most ? [{ one, distance }] : []
    })
    return distinct(near.sort((a, b) => a.distance - b.distance).map(({ one }) => one)).slice(0, 5)
  }
}

/** `nearness`, without the work where it must be more than `most`. */
function nearnessWithin(a: string, b: string, most: number): number {
  const contained = a.includes(b) || b.includes(a)
  const apart = Math.abs(a.length - b.length)
  return contained || apart <= most ? nearness(a, b) : apart
}

function distinct(found: readonly Synonym[]): ClassEntry[] {
  const byId = new Map(found.map(({ id, name }) => [id, { id, name }]))
  return [...byId.values()]
}

function wordsOf(text: string): string[] {
  return text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []
}

/** 0 for the best; undefined where a word of the text is not in the name. */
function scoreOf({ id, name }: ClassEntry, wanted: string, words: string[]): number | undefined {
  if (String(id) === wanted) return 0
  const lower = name.toLowerCase()
  if (synonyms(name).includes(wanted)) return 1
  if (lower.startsWith(wanted)) return 2
  const inName = wordsOf(lower)
  if (words.length === 0 || !words.every((word) => inName.some((one) => one.startsWith(word)))) {
    return lower.includes(wanted) ? 4 : undefined
  }
  return 3
}
