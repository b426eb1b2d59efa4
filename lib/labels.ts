import { DiTError, invalidOption, show } from './errors.js'
import type { DiTConfig } from './formats/types.js'
import { isFloat32Array } from './realms.js'

/**
 * What an image is to show: a class by its number (0 to `numClasses - 1`; `numClasses` itself is the
 * null class of models that have one: no class) or its name, or an embedding of `hidden` numbers that
 * takes the place of the class's own.
 */
export type Label = number | string | Float32Array

/** Class names by class number. */
export type ClassNames = Readonly<Record<number, string>>

/** What labels depend on. @internal */
export type LabelConfig = Pick<DiTConfig, 'numClasses' | 'nullClass' | 'hidden'>

/** Labels as the native part takes them: a class number, or -1 and a vector. @internal */
export interface ResolvedLabels {
  classes: number[]
  vectors: (Float32Array | null)[]
}

/**
 * One label or many, checked.
 *
 * Throws ERR_DIT_OPTION for a class that does not exist and a name that is unknown or has several
 * classes, ERR_DIT_SHAPE for an embedding of another length.
 *
 * @internal
 */
export function resolveLabels(
  labels: unknown,
  config: LabelConfig,
  classNames: ClassNames,
  name = 'labels',
): ResolvedLabels {
  const list = Array.isArray(labels) ? labels : [labels]
  if (list.length === 0) throw invalidOption(name, 'at least one label', labels)
  const classes: number[] = []
  const vectors: (Float32Array | null)[] = []
  for (const [i, label] of list.entries()) {
    const where = Array.isArray(labels) ? `${name}[${i}]` : name
    const isVector = isFloat32Array(label)
    if (isVector) checkEmbedding(where, label, config)
    classes.push(isVector ? -1 : resolveClass(where, label, config, classNames))
    vectors.push(isVector ? label : null)
  }
  return { classes, vectors }
}

function checkEmbedding(where: string, label: Float32Array, { hidden }: LabelConfig): void {
  if (label.length === hidden) return
  throw new DiTError(
    'ERR_DIT_SHAPE',
    `Expected an embedding of ${hidden} numbers for ${where} but got ${label.length}`,
  )
}

function resolveClass(
  where: string,
  label: unknown,
  { numClasses, nullClass }: LabelConfig,
  classNames: ClassNames,
): number {
  if (typeof label === 'number') {
    const last = nullClass ? numClasses : numClasses - 1
    if (Number.isInteger(label) && label >= 0 && label <= last) return label
    const classes = `a class from 0 to ${numClasses - 1}`
    const expected = nullClass ? `${classes}, or ${numClasses} for no class` : classes
    throw invalidOption(where, expected, label)
  }
  if (typeof label === 'string') return findClass(where, label, classNames)
  throw invalidOption(where, 'a class number, a class name or a Float32Array', label)
}

/** By exact name, then ignoring case, then as one of the comma-separated synonyms of a name. */
function findClass(where: string, label: string, classNames: ClassNames): number {
  const names = Object.entries(classNames).map(([id, name]) => ({ id: Number(id), name }))
  if (names.length === 0) {
    throw invalidOption(where, 'a class number (this model came without class names)', label)
  }
  const wanted = label.trim().toLowerCase()
  const ways: ((name: string) => boolean)[] = [
    (name) => name === label,
    (name) => name.toLowerCase() === wanted,
    (name) => synonyms(name).includes(wanted),
  ]
  for (const matches of ways) {
    const found = names.filter(({ name }) => matches(name))
    if (found.length === 1) return found[0]?.id as number
    if (found.length > 1) {
      const classes = found.map(({ id, name }) => `${id} (${name})`).join(', ')
      throw new DiTError(
        'ERR_DIT_OPTION',
        `${where}: several classes are called ${show(label)}: ${classes}. Give the number`,
      )
    }
  }
  const near = closest(
    wanted,
    names.flatMap(({ id, name }) => synonyms(name).map((synonym) => ({ synonym, id }))),
  )
  const hint = near.map(({ synonym, id }) => `${show(synonym)} (${id})`).join(', ')
  throw new DiTError(
    'ERR_DIT_OPTION',
    `${where}: no class is called ${show(label)}.${hint === '' ? '' : ` Did you mean ${hint}?`}`,
  )
}

/** The comma-separated names of a class, in lower case. @internal */
export function synonyms(name: string): string[] {
  return name.split(',').map((part) => part.trim().toLowerCase())
}

/** The nearest of `all` to a name that is none of them, the nearest first; at most three. */
function closest<T extends { synonym: string }>(wanted: string, all: T[]): T[] {
  return all
    .map((entry) => ({ entry, distance: nearness(wanted, entry.synonym) }))
    .filter(({ distance }) => distance <= Math.max(2, wanted.length / 3))
    .sort((a, b) => a.distance - b.distance)
    .slice(0, 3)
    .map(({ entry }) => entry)
}

/** The number of edits between two words; 1 when one contains the other. @internal */
export function nearness(a: string, b: string): number {
  const [short, long] = a.length < b.length ? [a, b] : [b, a]
  return short.length >= 3 && long.includes(short) ? 1 : editDistance(a, b)
}

/** Levenshtein's distance: insertions, deletions and replacements of one letter. @internal */
export function editDistance(a: string, b: string): number {
  let above = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      const replaced = (above[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1)
      row.push(Math.min(replaced, (above[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1))
    }
    above = row
  }
  return above[b.length] ?? 0
}
