// From what a user calls a model to checked lists of tensors: `resolveSource`.

import { stat } from 'node:fs/promises'
import path from 'node:path'
import * as v from 'valibot'
import { badFormat, DiTError, fileError, invalidOption, show } from '../errors.js'
import { type Checkpoint, selectWeights } from './checkpoint.js'
import {
  type GivenConfig,
  parseConfigInput,
  parseDitJson,
  parseFile,
  resolveDitConfig,
  trainingArguments,
} from './dit_config.js'
import { ditShapes, ditTensors, ignoredInDit } from './dit_names.js'
import { exists, readFully, withFile } from './file.js'
import { parseJson, readJson } from './json.js'
import { type Matched, matchTensors } from './names.js'
import {
  type Component,
  isHubId,
  openFolder,
  type Place,
  type Selection,
  selectFiles,
  type Wanted,
} from './place.js'
import { readSafetensors } from './safetensors.js'
import { defaultSchedule, parseOwnSchedule, parseScheduleJson } from './schedule_config.js'
import { elementCount, sameShape, type TensorMap } from './tensor.js'
import { readTorch } from './torch.js'
import {
  type DiTConfig,
  itemSize,
  type LoadedSource,
  type ResolveOptions,
  type ScheduleConfig,
  type TensorPart,
  type WeightsChoice,
} from './types.js'
import { inferVaeConfig, parseVaeJson } from './vae_config.js'
import { flattenProjections, ignoredInVae, vaeNaming, vaeShapes, vaeTensors } from './vae_names.js'

/** Key of a safetensors file's metadata under which `dit.save` puts the configuration, as JSON. */
export const configMetadataKey = 'dit_native'

/**
 * Finds a model and reads the headers of its files: a diffusers folder; a folder with one checkpoint
 * and perhaps a config.json; a checkpoint of `dit.train`; a .safetensors, .pt, .pth, .bin or .ckpt
 * file, with a config.json beside it if there is one; or the id of a Hugging Face repository of these
 * kinds, which is downloaded into the usual cache. No weight is read.
 *
 * The configuration comes from `options.config`, then the file's own metadata, then config.json, then
 * the shapes of the tensors and the training arguments.
 *
 * Throws DiTError: ERR_DIT_FILE when something cannot be found, read or downloaded; ERR_DIT_FORMAT when
 * a file is damaged or unsafe, or its tensors are not those of a DiT of its configuration (every missing,
 * extra and mis-shaped one is named); ERR_DIT_OPTION when an option is wrong, or needed because no
 * configuration says it. An abort rejects with the signal's reason.
 *
 * @example
 * const source = await resolveSource('facebook/DiT-XL-2-256', { onProgress: console.log })
 * console.log(source.description, source.dit.config, source.vae?.config.scalingFactor)
 */
export async function resolveSource(
  source: string,
  options: ResolveOptions = {},
): Promise<LoadedSource> {
  if (typeof source !== 'string' || source === '') {
    throw invalidOption('source', 'a path or a Hugging Face id', source)
  }
  const { weights, vae } = options
  if (weights !== undefined && weights !== 'ema' && weights !== 'model') {
    throw invalidOption('weights', "'ema' or 'model'", weights)
  }
  if (vae !== undefined && (typeof vae !== 'string' || vae === '')) {
    throw invalidOption('vae', 'a path or a Hugging Face id', vae)
  }
  const given = options.config === undefined ? [] : [userConfig(options.config)]
  const place = source === 'demo' ? (options.demoPath ?? source) : source
  const found = await locate(place, { dit: true, vae: vae === undefined }, options)
  const loaded = await loadDit(found, given, options)
  const { config } = loaded.dit
  const decoder =
    vae === undefined
      ? await loadVae(found, config, options)
      : await resolveVae(vae, config, options)
  options.signal?.throwIfAborted()
  return { ...loaded, ...(decoder === undefined ? {} : { vae: decoder }) }
}

/**
 * The VAE alone of a folder, a file or a Hugging Face id (its branch 'main'), for a model of the given
 * size, or for any. As `resolveSource` finds it for the option `vae`, with the same errors.
 *
 * @example
 * const vae = await resolveVae('stabilityai/sd-vae-ft-ema', completeConfig('DiT-XL/2'))
 */
export async function resolveVae(
  source: string,
  config: DiTConfig | undefined,
  { signal, onProgress }: Pick<ResolveOptions, 'signal' | 'onProgress'> = {},
): Promise<NonNullable<LoadedSource['vae']>> {
  const options = { ...(signal && { signal }), ...(onProgress && { onProgress }) }
  const found = await locate(source, { dit: false, vae: true }, options)
  const vae = await loadVae(found, config, options)
  if (vae === undefined) throw new DiTError('ERR_DIT_INTERNAL', 'no VAE was looked for')
  return { ...vae, description: `${vae.description} (option vae)` }
}

/** A place with the files chosen from it, all of them on this machine. */
interface Found {
  readonly place: Place
  readonly selection: Selection
  /** The weights chosen, where each has a file. */
  readonly weights?: WeightsChoice
  /** Local paths by the names of the place. */
  readonly paths: ReadonlyMap<string, string>
  readonly id2label?: Record<number, string>
  readonly hub?: LoadedSource['hub']
}

async function locate(source: string, wanted: Wanted, options: ResolveOptions): Promise<Found> {
  options.signal?.throwIfAborted()
  let isFolder: boolean
  try {
    isFolder = (await stat(source)).isDirectory()
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    if (code !== 'ENOENT' && code !== 'ENOTDIR') throw fileError(source, 'read', cause)
    if (isHubId(source)) return locateInHub(source, wanted, options)
    throw new DiTError(
      'ERR_DIT_FILE',
      `There is no file or folder ${path.resolve(source)}, and ${show(source)} is no Hugging Face id, ` +
        "which looks like 'facebook/DiT-XL-2-256'",
      { cause },
    )
  }
  return isFolder ? choose(await openFolder(source), wanted, options) : locateFile(source, wanted)
}

async function locateFile(file: string, wanted: Wanted): Promise<Found> {
  const name = path.basename(file)
  const config = path.join(path.dirname(file), 'config.json')
  const hasConfig = await exists(config)
  const component: Component = { weights: [name], ...(hasConfig ? { config: 'config.json' } : {}) }
  const paths = new Map([[name, file]])
  if (hasConfig) paths.set('config.json', config)
  const place: Place = {
    name: path.dirname(file),
    files: new Set(paths.keys()),
    get: async (names) => names.map((inside) => path.join(path.dirname(file), inside)),
  }
  return { place, selection: wanted.dit ? { dit: component } : { vae: component }, paths }
}

async function locateInHub(id: string, wanted: Wanted, options: ResolveOptions): Promise<Found> {
  const { openRepository } = await import('./hub.js')
  const repository = await openRepository(id, options)
  const hub = { id, revision: options.revision ?? 'main', commit: repository.commit }
  const { cached, remote } = repository
  const found = cached && (await choose(cached, wanted, options).catch(unlessIncomplete))
  return { ...(found ?? (await choose(await remote(), wanted, options))), hub }
}

/** Where the cache lacks a file, the hub may have it. */
function unlessIncomplete(error: unknown): undefined {
  if (!(error instanceof DiTError && error.code === 'ERR_DIT_FILE')) throw error
}

const labelsSchema = v.looseObject({
  id2label: v.nullish(v.record(v.pipe(v.string(), v.regex(/^\d{1,9}$/)), v.string())),
})

/** The class names of a model_index.json or of this package's own configuration. */
function parseLabels(json: unknown, where: string): { id2label?: Record<number, string> } {
  const { id2label } = parseFile(labelsSchema, json, where)
  return id2label == null ? {} : { id2label }
}

/** A checkpoint that `dit.train` wrote has these: both weights, in a file each. */
const trainingFiles = ['trainer.json', 'model.safetensors', 'ema.safetensors']

/** Reads the place's model_index.json, chooses files, and gets them. */
async function choose(
  place: Place,
  wanted: Wanted,
  { weights = 'ema' }: ResolveOptions,
): Promise<Found> {
  const declared = new Set<string>()
  let labels: { id2label?: Record<number, string> } = {}
  if (place.files.has('model_index.json')) {
    const [file = ''] = await place.get(['model_index.json'])
    const index = parseFile(v.record(v.string(), v.unknown()), await readJson(file), file)
    labels = parseLabels(index, file)
    for (const [key, value] of Object.entries(index)) {
      if (Array.isArray(value) && typeof value[1] === 'string') declared.add(key)
    }
    if (wanted.dit && !declared.has('transformer')) {
      throw badFormat(file, `${show(index._class_name)} is a pipeline without a transformer`)
    }
  }
  const isTraining = wanted.dit && trainingFiles.every((name) => place.files.has(name))
  const selection = isTraining
    ? { dit: { weights: [`${weights}.safetensors`] } }
    : selectFiles(place, wanted, declared)
  const { dit, vae, scheduler } = selection
  const configs = [scheduler, dit?.config, vae?.config].filter((name) => name !== undefined)
  const names = [...configs, ...(dit?.weights ?? []), ...(vae?.weights ?? [])]
  const files = await place.get(names)
  const paths = new Map(names.map((name, i) => [name, files[i] ?? '']))
  return { place, selection, paths, ...(isTraining && { weights }), ...labels }
}

function localPath(found: Found, name: string): string {
  return found.paths.get(name) ?? ''
}

function userConfig(config: unknown): GivenConfig {
  return { where: 'the option config', input: parseConfigInput(config) }
}

/** What this package's own configuration has beside the model's sizes. */
interface Own {
  schedule?: ScheduleConfig
  id2label?: Record<number, string>
}

/** Reads one configuration, adds its sizes to `given` and returns the rest; undefined when unknown. */
function readConfig(json: unknown, where: string, given: GivenConfig[]): Own | undefined {
  const input = parseDitJson(json, where)
  if (input === undefined) return undefined
  given.push({ where, input })
  const { schedule } = json as Record<string, unknown>
  return {
    ...(schedule == null ? {} : { schedule: parseOwnSchedule(schedule, where) }),
    ...parseLabels(json, where),
  }
}

async function loadDit(
  found: Found,
  given: GivenConfig[],
  options: ResolveOptions,
): Promise<Omit<LoadedSource, 'vae'>> {
  const component = found.selection.dit
  if (component === undefined)
    throw new DiTError('ERR_DIT_INTERNAL', 'no transformer was looked for')
  const files = component.weights.map((name) => localPath(found, name))
  const read = await readWeights(files, options)
  const file = files[0] ?? ''
  const notes: string[] = []
  const own: Own[] = []
  const metadata = read.metadata.get(configMetadataKey)
  if (metadata !== undefined) {
    const where = `${file}, metadata`
    const json = parseJson(Buffer.from(metadata), where, show(configMetadataKey))
    own.push(readConfig(json, where, given) ?? {})
  }
  if (component.config !== undefined) {
    const where = localPath(found, component.config)
    const extras = readConfig(await readJson(where, options.signal), where, given)
    if (extras === undefined) notes.push(`${where} is no configuration of a DiT and was not used.`)
    own.push(extras ?? {})
  }
  const shapes = ditShapes(file, read.tensors)
  const resolved = resolveDitConfig(file, shapes, given, trainingArguments(read.args))
  const specs = ditTensors(resolved.config)
  const matched = matchTensors(
    file,
    read.tensors,
    specs,
    shapes.naming,
    ignoredInDit,
    resolved.conflicts,
  )
  await checkCopies(matched.copies)
  const { scheduler } = found.selection
  const schedule =
    scheduler === undefined
      ? own.find((item) => item.schedule !== undefined)?.schedule
      : parseScheduleJson(await readJson(localPath(found, scheduler)), localPath(found, scheduler))
  const id2label = found.id2label ?? own.find((item) => item.id2label !== undefined)?.id2label
  const isPipeline = component.weights[0]?.includes('/') === true
  const weights = read.weights ?? found.weights
  return {
    kind: isPipeline ? 'diffusers' : read.kind,
    description: describe(found, component, weights),
    ...(weights === undefined ? {} : { weights }),
    ...(found.hub === undefined ? {} : { hub: found.hub }),
    notes: [...notes, ...resolved.notes],
    dit: { config: resolved.config, tensors: matched.sources },
    schedule: schedule ?? defaultSchedule,
    ...(id2label === undefined ? {} : { id2label }),
  }
}

async function loadVae(
  found: Found,
  model: DiTConfig | undefined,
  { signal }: ResolveOptions,
): Promise<LoadedSource['vae']> {
  const component = found.selection.vae
  if (component === undefined) return undefined
  const files = component.weights.map((name) => localPath(found, name))
  const file = files[0] ?? ''
  const read = await readWeights(files, signal === undefined ? {} : { signal })
  const tensors = flattenProjections(read.tensors)
  const configFile = component.config === undefined ? undefined : localPath(found, component.config)
  const config =
    configFile === undefined
      ? inferVaeConfig(vaeShapes(file, tensors), file)
      : parseVaeJson(await readJson(configFile), configFile)
  const { sources } = matchTensors(
    file,
    tensors,
    vaeTensors(config),
    vaeNaming(tensors),
    ignoredInVae,
  )
  const description = describe(found, component)
  if (model && config.latentChannels !== model.channels) {
    throw badFormat(
      description,
      `the VAE makes latents of ${config.latentChannels} channels, the model takes ${model.channels}`,
    )
  }
  return { config, tensors: sources, description }
}

function describe(found: Found, { weights }: Component, choice?: string): string {
  const more = weights.length > 1 ? ` and ${weights.length - 1} more` : ''
  const which = choice === undefined ? '' : `, ${choice === 'ema' ? 'EMA' : 'model'} weights`
  return `${path.join(found.place.name, weights[0] ?? '')}${more}${which}`
}

interface Weights extends Checkpoint {
  readonly kind: 'safetensors' | 'torch'
  readonly metadata: ReadonlyMap<string, string>
}

/** The tensors of one checkpoint in one or several files. */
async function readWeights(files: readonly string[], options: ResolveOptions): Promise<Weights> {
  const read: Weights[] = []
  for (const file of files) {
    options.signal?.throwIfAborted()
    read.push(await readFile(file, options))
  }
  const [first] = read
  if (first === undefined) throw new DiTError('ERR_DIT_INTERNAL', 'no file to read')
  const tensors: TensorMap = new Map()
  for (const [name, part] of read.flatMap((item) => [...item.tensors])) {
    if (tensors.has(name)) throw badFormat(part.file, `it has ${show(name)}, as another part does`)
    tensors.set(name, part)
  }
  return { ...first, tensors }
}

async function readFile(file: string, { weights }: ResolveOptions): Promise<Weights> {
  if ((await kindOf(file)) === 'safetensors') {
    return { kind: 'safetensors', args: new Map(), ...(await readSafetensors(file)) }
  }
  const checkpoint = selectWeights(file, await readTorch(file), weights)
  return { kind: 'torch', metadata: new Map(), ...checkpoint }
}

/** A file's kind by its first bytes; by its name when these say nothing. */
async function kindOf(file: string): Promise<'safetensors' | 'torch'> {
  let start: Buffer
  try {
    start = await withFile(file, async (handle) => {
      return readFully(handle, file, 0, Math.min(9, (await handle.stat()).size))
    })
  } catch (cause) {
    throw fileError(file, 'read', cause)
  }
  if (start.subarray(0, 4).equals(Buffer.from('PK\x03\x04'))) return 'torch'
  if (start[8] === 0x7b) return 'safetensors' // the '{' after the header's length
  if (/\.(pt|pth|bin|ckpt)$/.test(file)) return 'torch'
  if (file.endsWith('.safetensors')) return 'safetensors'
  throw badFormat(
    file,
    'this is no checkpoint: expected a safetensors file or one that torch.save wrote (.pt, .pth, .bin)',
  )
}

/**
 * diffusers repeats the embedders in every block and could train them apart; a DiT has one of each.
 * Compares the first bytes of every copy: training changes all of a tensor.
 */
async function checkCopies(copies: Matched['copies']): Promise<void> {
  for (const { name, first, copy } of copies) {
    const length = Math.min(4096, elementCount(first.shape) * itemSize[first.dtype])
    const same =
      first.dtype === copy.dtype &&
      sameShape(first.strides, copy.strides) &&
      (await readStart(first, length)).equals(await readStart(copy, length))
    if (same) continue
    throw badFormat(
      copy.file,
      `${name} differs from the same tensor of block 0. A DiT has one timestep and one label ` +
        'embedder; these were trained apart, which only diffusers can run',
    )
  }
}

async function readStart(part: TensorPart, length: number): Promise<Buffer> {
  try {
    return await withFile(part.file, async (handle) => {
      const { size } = await handle.stat()
      return readFully(handle, part.file, part.offset, Math.min(length, size - part.offset))
    })
  } catch (cause) {
    throw fileError(part.file, 'read', cause)
  }
}
