// Which files of a folder or repository make a checkpoint.

import { readdir } from 'node:fs/promises'
import path from 'node:path'
import { DiTError, fileError, show } from '../errors.js'

/** A folder of files: one of this machine, or a repository whose files are downloaded when asked for. */
export interface Place {
  /** For messages: a path, or `id@commit`. */
  readonly name: string
  /** Names relative to the place, with '/'. Only of its root and of the folders of a pipeline. */
  readonly files: ReadonlySet<string>
  /** Local paths of files of the place. */
  get(names: readonly string[]): Promise<string[]>
}

/** The folders of a diffusers pipeline that are of use here. */
export const pipelineFolders = ['transformer', 'vae', 'scheduler']

/** True for what can be the id of a repository, `org/name`, and is no file's name. */
export function isHubId(source: string): boolean {
  return (
    /^[A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*$/.test(source) &&
    !/\.(safetensors|bin|pt|pth|ckpt|json)$/.test(source)
  )
}

/** A folder of this machine. Throws ERR_DIT_FILE when it cannot be listed. */
export async function openFolder(folder: string, name = folder): Promise<Place> {
  const list = async (inside: string): Promise<string[]> => {
    const entries = await readdir(path.join(folder, inside), { withFileTypes: true })
    return entries
      .filter((entry) => !entry.isDirectory())
      .map((entry) => path.posix.join(inside, entry.name))
  }
  try {
    const entries = await readdir(folder, { withFileTypes: true })
    const inside = entries.filter(
      (entry) => pipelineFolders.includes(entry.name) && !entry.isFile(),
    )
    const lists = await Promise.all([list(''), ...inside.map((entry) => list(entry.name))])
    return {
      name,
      files: new Set(lists.flat()),
      get: async (names) => names.map((file) => path.join(folder, file)),
    }
  } catch (cause) {
    throw fileError(folder, 'read', cause)
  }
}

/** The files of one model: its weights, in one or several files, and its configuration. */
export interface Component {
  readonly weights: readonly string[]
  readonly config?: string
}

export interface Selection {
  readonly dit?: Component
  readonly vae?: Component
  readonly scheduler?: string
}

/** What to look for in a place. */
export interface Wanted {
  readonly dit: boolean
  readonly vae: boolean
}

/**
 * Chooses the files to use: those of a diffusers pipeline, or else the only checkpoint of the folder
 * (a DiT's, or a VAE's where only that is wanted).
 *
 * `declared` are the components that model_index.json names; a pipeline must have those it names.
 * Throws ERR_DIT_FILE when something wanted is missing, or when it is not clear which file is meant.
 */
export function selectFiles(
  place: Place,
  wanted: Wanted,
  declared: ReadonlySet<string>,
): Selection {
  const { files } = place
  const scheduler = 'scheduler/scheduler_config.json'
  const has = (folder: string) =>
    declared.has(folder) || findWeights(place, `${folder}/`) !== undefined
  const component = (folder: string): Component => {
    const weights = findWeights(place, `${folder}/`)
    if (weights === undefined) throw noWeights(place, `${folder}/`)
    return { weights, config: required(place, `${folder}/config.json`) }
  }
  const vae = wanted.vae && has('vae') ? { vae: component('vae') } : {}
  if (declared.size > 0 || has('transformer')) {
    const dit = wanted.dit ? { dit: component('transformer') } : {}
    if (!declared.has('scheduler') && !files.has(scheduler)) return { ...dit, ...vae }
    return { ...dit, ...vae, scheduler: required(place, scheduler) }
  }
  if (!wanted.dit && has('vae')) return vae
  const weights = findWeights(place, '')
  if (weights === undefined) throw noWeights(place, '')
  const single = { weights, ...(files.has('config.json') ? { config: 'config.json' } : {}) }
  return wanted.dit ? { dit: single, ...vae } : { vae: single }
}

function required(place: Place, name: string): string {
  if (place.files.has(name)) return name
  throw new DiTError('ERR_DIT_FILE', `${place.name} has no ${name}`)
}

const shardPattern = /-(\d{5})-of-(\d{5})\.(safetensors|bin)$/

/** What diffusers and transformers call a model's weights. */
const usualNames = ['diffusion_pytorch_model', 'model', 'pytorch_model']

/**
 * The weights in a folder of a place ('' or 'name/'): under a usual name, or the only
 * checkpoint. safetensors are preferred to torch files of the same name.
 */
function findWeights(place: Place, folder: string): string[] | undefined {
  const names = [...place.files]
    .filter((name) => name.startsWith(folder) && !name.slice(folder.length).includes('/'))
    .sort()
  for (const extension of ['safetensors', 'bin']) {
    const usual = usualNames.map((name) => `${folder}${name}.${extension}`)
    const file = usual.find((name) => place.files.has(name))
    if (file !== undefined) return [file]
    const shards = names.filter((name) => shardPattern.exec(name)?.[3] === extension)
    if (shards.length > 0) return checkShards(place, shards)
  }
  const others = names.filter((name) => /\.(safetensors|bin|pt|pth|ckpt)$/.test(name))
  const stems = new Set(others.map((name) => name.replace(/\.\w+$/, '')))
  if (stems.size > 1) {
    throw new DiTError(
      'ERR_DIT_FILE',
      `${place.name} has several checkpoints (${others.slice(0, 10).join(', ')}): give the path of one`,
    )
  }
  const best = others.find((name) => name.endsWith('.safetensors')) ?? others[0]
  return best === undefined ? undefined : [best]
}

/** The parts of one checkpoint, all of them. */
function checkShards(place: Place, shards: string[]): string[] {
  const stems = new Set(shards.map((name) => name.replace(shardPattern, '')))
  const counts = new Set(shards.map((name) => Number(shardPattern.exec(name)?.[2])))
  if (stems.size > 1 || counts.size > 1 || !counts.has(shards.length)) {
    throw new DiTError(
      'ERR_DIT_FILE',
      `${place.name} does not have all parts of one checkpoint: ${shards.slice(0, 10).join(', ')}`,
    )
  }
  return shards
}

function noWeights(place: Place, folder: string): DiTError {
  const names = [...place.files].slice(0, 10).map(show).join(', ')
  return new DiTError(
    'ERR_DIT_FILE',
    `${place.name} has no weights${folder === '' ? '' : ` in ${folder}`}: expected a .safetensors, .bin, ` +
      `.pt, .pth or .ckpt file there, or a diffusers pipeline. It has ${names || 'no files'}`,
  )
}
