// What stands behind an option on the command line, read strictly: '25x', '0x19' and '' are no numbers.

import { readFileSync } from 'node:fs'
import { InvalidArgumentError } from 'commander'
import type { DiTConfigInput } from '../formats/types.js'
import type { Seed } from '../options.js'

export function integer(min: number, max = Number.MAX_SAFE_INTEGER) {
  return (text: string): number => {
    const value = Number(text)
    if (/^\d+$/.test(text) && value >= min && value <= max) return value
    const range = max === Number.MAX_SAFE_INTEGER ? `of at least ${min}` : `from ${min} to ${max}`
    throw new InvalidArgumentError(`Expected an integer ${range}.`)
  }
}

export function number(text: string): number {
  if (/^-?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(text) && Number.isFinite(Number(text))) {
    return Number(text)
  }
  throw new InvalidArgumentError('Expected a number.')
}

export function seed(text: string): Seed {
  if (/^\d{1,20}$/.test(text) && BigInt(text) < 2n ** 64n) {
    return BigInt(text) <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(text) : BigInt(text)
  }
  throw new InvalidArgumentError('Expected an integer from 0 to 2^64 - 1.')
}

/** `207,tabby cat`: numbers are class numbers, everything else is a name. */
export function labels(text: string): (number | string)[] {
  const list = text.split(',').map((label) => label.trim())
  if (list.includes('')) {
    throw new InvalidArgumentError('Expected class numbers or names with commas between them.')
  }
  return list.map((label) => (/^\d+$/.test(label) ? Number(label) : label))
}

/** `32` or `32x48`: height and width. */
export function latentSize(text: string): number | [height: number, width: number] {
  const [, height, width] = /^([1-9]\d*)(?:x([1-9]\d*))?$/.exec(text) ?? []
  if (height === undefined) throw new InvalidArgumentError('Expected a size or HEIGHTxWIDTH.')
  return width === undefined ? Number(height) : [Number(height), Number(width)]
}

/** `3` or `all`. */
export function guidanceChannels(text: string): number | 'all' {
  return text === 'all' ? text : integer(1)(text)
}

/** `0.1,0.8`. */
export function interval(text: string): [from: number, to: number] {
  const parts = text.split(',')
  if (parts.length !== 2) throw new InvalidArgumentError('Expected two numbers: FROM,TO.')
  return parts.map(number) as [number, number]
}

/** A preset's name, or an object as JSON. What it says is checked when it is used. */
export function config(text: string): DiTConfigInput | string {
  if (!text.startsWith('{')) return text
  try {
    return JSON.parse(text) as DiTConfigInput
  } catch (cause) {
    throw new InvalidArgumentError(`This is no JSON: ${(cause as Error).message}.`)
  }
}

/** As `config`, or the name of a JSON file. */
export function configOrFile(text: string): DiTConfigInput | string {
  if (!text.endsWith('.json')) return config(text)
  try {
    return JSON.parse(readFileSync(text, 'utf8')) as DiTConfigInput
  } catch (cause) {
    throw new InvalidArgumentError(`Cannot read it: ${(cause as Error).message}.`)
  }
}

/** `cat,dog`: the names of classes 0, 1, … */
export function classNames(text: string): Record<number, string> {
  return { ...names(text) }
}

/** `auto` or a number of rows. */
export function batchSize(text: string): number | 'auto' {
  return text === 'auto' ? text : integer(1)(text)
}

/** `none`, `block` or how many blocks are replayed at once. */
export function checkpointing(text: string): 'none' | 'block' | { every: number } {
  return text === 'none' || text === 'block' ? text : { every: integer(1)(text) }
}

/** `0.9,0.999`. */
export function pair(text: string): [number, number] {
  return interval(text)
}

/** `lr,data.length`. */
export function names(text: string): string[] {
  return text.split(',').map((name) => name.trim())
}

/** `1/3`: the first of three. */
export function shard(text: string): [i: number, n: number] {
  const [, i, n] = /^([1-9]\d{0,5})\/([1-9]\d{0,5})$/.exec(text) ?? []
  if (i !== undefined && Number(i) <= Number(n)) return [Number(i), Number(n)]
  throw new InvalidArgumentError('Expected I/N, I from 1 to N: 1/3.')
}

/** `demo`, then `xl=facebook/DiT-XL-2-256`: sources, which have names when there are several. */
export function namedModels(
  text: string,
  before?: string | Record<string, string>,
): string | Record<string, string> {
  const [, name, source] = /^([\w.-]+)=(.+)$/.exec(text) ?? []
  if (name === undefined && before === undefined) return text
  const known = typeof before === 'string' ? {} : (before ?? {})
  if (name === undefined || source === undefined || typeof before === 'string') {
    throw new InvalidArgumentError('Expected NAME=SOURCE for each of several models.')
  }
  if (Object.hasOwn(known, name))
    throw new InvalidArgumentError(`There are two models called ${name}.`)
  return { ...known, [name]: source }
}
