// What a DiT's configuration is, where it can come from, and how the sources are put together.

import * as v from 'valibot'
import { badFormat, DiTError, invalidOption, show } from '../errors.js'
import type { DitShapes } from './dit_names.js'
import type { DiTConfig, DiTConfigInput } from './types.js'

/** Peebles & Xie 2022, table 1. */
const models = {
  S: { depth: 12, hidden: 384, heads: 6 },
  B: { depth: 12, hidden: 768, heads: 12 },
  L: { depth: 24, hidden: 1024, heads: 16 },
  XL: { depth: 28, hidden: 1152, heads: 16 },
}

/** The sizes of the paper: `DiT-{S,B,L,XL}/{2,4,8}`. */
export const presets: ReadonlyMap<string, DiTConfigInput> = new Map(
  Object.entries(models).flatMap(([letter, model]) =>
    [2, 4, 8].map((patchSize) => [`DiT-${letter}/${patchSize}`, { ...model, patchSize }] as const),
  ),
)

const positive = v.pipe(v.number(), v.safeInteger(), v.minValue(1), v.maxValue(1 << 24))
const sizeSchema = v.union([positive, v.strictTuple([positive, positive])])

const inputEntries = {
  depth: v.optional(v.pipe(positive, v.maxValue(1000))),
  hidden: v.optional(v.pipe(positive, v.maxValue(1 << 16))),
  heads: v.optional(positive),
  patchSize: v.optional(v.pipe(positive, v.maxValue(1024))),
  latentSize: v.optional(sizeSchema),
  channels: v.optional(v.pipe(positive, v.maxValue(1 << 12))),
  numClasses: v.optional(positive),
  nullClass: v.optional(v.boolean()),
  learnSigma: v.optional(v.boolean()),
  mlpHidden: v.optional(v.pipe(positive, v.maxValue(1 << 18))),
}

/**
 * Checks a configuration that a user wrote: a preset's name or an object with any of the fields.
 *
 * Throws ERR_DIT_OPTION that names the field, what it must be and what it is.
 */
export function parseConfigInput(value: unknown, name = 'config'): DiTConfigInput {
  if (typeof value === 'string') {
    const preset = presets.get(value)
    if (preset === undefined)
      throw invalidOption(name, `one of ${[...presets.keys()].join(', ')}`, value)
    return preset
  }
  const known = Object.keys(inputEntries)
  const keys = typeof value === 'object' && value !== null ? Object.keys(value) : []
  const stray = keys.find((key) => !known.includes(key))
  if (stray !== undefined) {
    throw new DiTError(
      'ERR_DIT_OPTION',
      `${name} has no field ${show(stray)}, only ${known.join(', ')}`,
    )
  }
  const parsed = v.safeParse(v.object(inputEntries), value)
  if (parsed.success) return compact(parsed.output)
  const issue = parsed.issues[0]
  const path = v.getDotPath(issue)
  throw new DiTError(
    'ERR_DIT_OPTION',
    path === null
      ? `Expected a preset's name or an object for ${name} but got ${show(value)}`
      : `${name}.${path}: ${issue.message}`,
  )
}

/**
 * A complete configuration from a preset's name or an object: `depth`, `hidden` and `heads` are
 * needed, the rest has the defaults of the paper (patch 2, 32×32×4 latents, 1000 classes and the
 * null class, learned sigma, MLP four times as wide).
 *
 * Throws ERR_DIT_OPTION when something is missing or does not fit together.
 *
 * @example
 * completeConfig('DiT-XL/2').hidden // 1152
 */
export function completeConfig(value: unknown, name = 'config'): DiTConfig {
  const input = parseConfigInput(value, name)
  const { depth, hidden, heads } = input
  if (depth === undefined) throw invalidOption(`${name}.depth`, 'a number', depth)
  if (hidden === undefined) throw invalidOption(`${name}.hidden`, 'a number', hidden)
  if (heads === undefined) throw invalidOption(`${name}.heads`, 'a number', heads)
  const config: DiTConfig = {
    depth,
    hidden,
    heads,
    patchSize: input.patchSize ?? 2,
    latentSize: pair(input.latentSize ?? 32),
    channels: input.channels ?? 4,
    numClasses: input.numClasses ?? 1000,
    nullClass: input.nullClass ?? true,
    learnSigma: input.learnSigma ?? true,
    mlpHidden: input.mlpHidden ?? 4 * hidden,
  }
  const problem = inconsistency(config)
  if (problem !== undefined) throw new DiTError('ERR_DIT_OPTION', `${name}: ${problem}`)
  return config
}

/** Why a configuration is no DiT's, if so. */
function inconsistency(config: DiTConfig): string | undefined {
  const { hidden, heads, latentSize, patchSize } = config
  if (hidden % heads !== 0) return `heads (${heads}) must divide hidden (${hidden})`
  if (hidden % 4 !== 0)
    return `hidden (${hidden}) must be a multiple of 4, for the position embedding`
  if (latentSize.some((size) => size % patchSize !== 0)) {
    return `latentSize (${latentSize.join('×')}) must be a multiple of patchSize (${patchSize})`
  }
  return undefined
}

/** A configuration that came with the weights or from the user, and where from. */
export interface GivenConfig {
  readonly where: string
  readonly input: DiTConfigInput
}

const jsonObject = v.record(v.string(), v.unknown())

const officialSchema = v.looseObject({
  input_size: v.optional(sizeSchema),
  patch_size: v.optional(positive),
  in_channels: v.optional(positive),
  hidden_size: v.optional(positive),
  depth: v.optional(positive),
  num_heads: v.optional(positive),
  mlp_ratio: v.optional(v.pipe(v.number(), v.minValue(0))),
  class_dropout_prob: v.optional(v.number()),
  num_classes: v.optional(positive),
  learn_sigma: v.optional(v.boolean()),
})

const diffusersSchema = v.looseObject({
  num_layers: positive,
  num_attention_heads: positive,
  attention_head_dim: positive,
  in_channels: v.nullish(positive),
  out_channels: v.nullish(positive),
  patch_size: v.nullish(positive),
  sample_size: v.nullish(sizeSchema),
  num_embeds_ada_norm: v.nullish(positive),
  norm_type: v.nullish(v.literal('ada_norm_zero')),
  activation_fn: v.nullish(v.literal('gelu-approximate')),
  attention_bias: v.nullish(v.literal(true)),
  norm_elementwise_affine: v.nullish(v.literal(false)),
})

/**
 * Reads a config.json: this package's own, one with the arguments of the official constructor, or the
 * one of a diffusers transformer. `undefined` for an object of another kind.
 *
 * Throws ERR_DIT_FORMAT when a field has a wrong type, or describes a transformer that is no DiT.
 */
export function parseDitJson(json: unknown, file: string): DiTConfigInput | undefined {
  if (!v.is(jsonObject, json)) throw badFormat(file, 'it holds no JSON object')
  if ('_class_name' in json || 'attention_head_dim' in json) return fromDiffusers(json, file)
  if ('hidden_size' in json) return fromOfficial(json, file)
  if ('hidden' in json) return compact(parseFile(v.object(inputEntries), json, file))
  return undefined
}

function fromOfficial(json: unknown, file: string): DiTConfigInput {
  const config = parseFile(officialSchema, json, file)
  const { hidden_size: hidden, mlp_ratio: ratio, class_dropout_prob: dropout } = config
  return compact({
    depth: config.depth,
    hidden,
    heads: config.num_heads,
    patchSize: config.patch_size,
    latentSize: config.input_size,
    channels: config.in_channels,
    numClasses: config.num_classes,
    nullClass: dropout === undefined ? undefined : dropout > 0,
    learnSigma: config.learn_sigma,
    mlpHidden: hidden === undefined || ratio === undefined ? undefined : Math.trunc(hidden * ratio),
  })
}

function fromDiffusers(json: Record<string, unknown>, file: string): DiTConfigInput {
  const name = json._class_name
  if (name !== undefined && name !== 'Transformer2DModel' && name !== 'DiTTransformer2DModel') {
    throw badFormat(file, `_class_name is ${show(name)}, expected a DiT: 'DiTTransformer2DModel'`)
  }
  const config = parseFile(diffusersSchema, json, file)
  const { in_channels: channels, out_channels: outChannels } = config
  return compact({
    depth: config.num_layers,
    hidden: config.num_attention_heads * config.attention_head_dim,
    heads: config.num_attention_heads,
    patchSize: config.patch_size ?? undefined,
    latentSize: config.sample_size ?? undefined,
    channels: channels ?? undefined,
    numClasses: config.num_embeds_ada_norm ?? undefined,
    learnSigma: channels == null ? undefined : (outChannels ?? channels) === 2 * channels,
  })
}

/** Checks a JSON object of a file, naming the file and the field when it does not fit. */
export function parseFile<S extends v.GenericSchema>(
  schema: S,
  json: unknown,
  file: string,
): v.InferOutput<S> {
  const parsed = v.safeParse(schema, json)
  if (parsed.success) return parsed.output
  const issue = parsed.issues[0]
  throw badFormat(file, `${v.getDotPath(issue) ?? 'the file'}: ${issue.message}`)
}

/** The training arguments of a checkpoint, as far as they say something that shapes do not. */
export interface TrainingArguments {
  heads?: number
  numClasses?: number
  /** Pixels of the training images. */
  imageSize?: number
  hasVae: boolean
}

export function trainingArguments(args: ReadonlyMap<string, unknown>): TrainingArguments {
  const number = (key: string) => {
    const value = args.get(key)
    return v.is(positive, value) ? value : undefined
  }
  return compact({
    heads: number('num_heads'),
    numClasses: number('num_classes'),
    imageSize: number('image_size'),
    hasVae: args.has('vae'),
  })
}

export interface ResolvedConfig {
  readonly config: DiTConfig
  /** Assumptions, in sentences. */
  readonly notes: string[]
  /** Where something given contradicts the shapes; then the tensors will not match. */
  readonly conflicts: string[]
}

/**
 * The configuration of a checkpoint: what is given, the first that says something winning; else what
 * the shapes say; else what its training arguments say, which are believed only where they fit.
 *
 * Throws ERR_DIT_OPTION when something is missing that only the user can say (heads, the latent's
 * size), ERR_DIT_FORMAT when the sizes fit no DiT.
 */
export function resolveDitConfig(
  file: string,
  shapes: DitShapes,
  given: readonly GivenConfig[],
  training: TrainingArguments,
): ResolvedConfig {
  const notes: string[] = []
  const conflicts: string[] = []
  const say = <K extends keyof DiTConfigInput>(key: K) => {
    const source = given.find(({ input }) => input[key] !== undefined)
    return source === undefined ? undefined : { where: source.where, value: source.input[key] }
  }
  /** A field that shapes tell: what is given must agree. */
  const pick = <K extends keyof DiTConfigInput>(key: K, shaped: NonNullable<DiTConfigInput[K]>) => {
    const said = say(key)
    if (said !== undefined && said.value !== shaped) {
      conflicts.push(`${said.where} says ${key} ${said.value}, the tensors' shapes say ${shaped}`)
    }
    return (said?.value as NonNullable<DiTConfigInput[K]> | undefined) ?? shaped
  }

  const channels = pick('channels', shapes.channels)
  const learnSigma = pick('learnSigma', shapes.outChannels === 2 * shapes.channels)
  if (shapes.outChannels !== shapes.channels && shapes.outChannels !== 2 * shapes.channels) {
    conflicts.push(
      `the last layer has ${shapes.outChannels} output channels for ${shapes.channels} input channels`,
    )
  }
  const depth = pick('depth', shapes.depth)
  const hidden = pick('hidden', shapes.hidden)
  const classes = resolveClasses(shapes, say('numClasses'), say('nullClass'), training)
  notes.push(...classes.notes)
  conflicts.push(...classes.conflicts)
  const config: DiTConfig = {
    depth,
    hidden,
    heads: say('heads')?.value ?? findHeads(file, depth, hidden, training),
    patchSize: pick('patchSize', shapes.patchSize),
    latentSize: pair(say('latentSize')?.value ?? findLatentSize(file, shapes, training, notes)),
    channels,
    numClasses: classes.numClasses,
    nullClass: classes.nullClass,
    learnSigma,
    mlpHidden: pick('mlpHidden', shapes.mlpHidden),
  }
  const problem = inconsistency(config)
  if (problem !== undefined) throw badFormat(file, [problem, ...conflicts].join('\n  '))
  return { config, notes, conflicts }
}

type Said<T> = { where: string; value: T | undefined } | undefined

function resolveClasses(
  { labelRows }: DitShapes,
  classes: Said<number>,
  nullClass: Said<boolean>,
  training: TrainingArguments,
): { numClasses: number; nullClass: boolean; notes: string[]; conflicts: string[] } {
  const fits = (count: number | undefined) => count === labelRows || count === labelRows - 1
  const trained = fits(training.numClasses) ? training.numClasses : undefined
  const said = classes?.value
  const hasNull = nullClass?.value ?? (said ?? trained ?? labelRows - 1) < labelRows
  const numClasses = said ?? labelRows - (hasNull ? 1 : 0)
  const notes: string[] = []
  const conflicts: string[] = []
  if (numClasses + (hasNull ? 1 : 0) !== labelRows) {
    const where = [...new Set([classes?.where, nullClass?.where])].filter(Boolean).join(' and ')
    conflicts.push(
      `${where} says ${numClasses} classes ${hasNull ? 'and' : 'without'} a null class, the label table ` +
        `has ${labelRows} rows`,
    )
  } else if (
    said === undefined &&
    nullClass === undefined &&
    trained === undefined &&
    labelRows !== 1001
  ) {
    notes.push(
      `Nothing says how many classes there are: assumed ${numClasses} and a null class, from a label ` +
        `table of ${labelRows} rows. Give config: { numClasses: ${labelRows} } if all are classes.`,
    )
  }
  return { numClasses, nullClass: hasNull, notes, conflicts }
}

/** The number of heads does not show in any shape. */
function findHeads(
  file: string,
  depth: number,
  hidden: number,
  training: TrainingArguments,
): number {
  if (training.heads !== undefined && hidden % training.heads === 0) return training.heads
  for (const preset of presets.values()) {
    if (preset.depth === depth && preset.hidden === hidden && preset.heads !== undefined) {
      return preset.heads
    }
  }
  throw new DiTError(
    'ERR_DIT_OPTION',
    `${file}: the number of attention heads cannot be seen in the weights (depth ${depth}, hidden ` +
      `${hidden}) and no configuration says it. Give config: { heads }, or put a config.json beside it`,
  )
}

function findLatentSize(
  file: string,
  { tokens, patchSize }: DitShapes,
  training: TrainingArguments,
  notes: string[],
): number {
  const side = Math.sqrt(tokens ?? 0.5)
  if (Number.isInteger(side)) return side * patchSize
  const { imageSize, hasVae } = training
  if (tokens === undefined && imageSize !== undefined && imageSize % 8 === 0 && hasVae) {
    notes.push(
      `The latent's size, ${imageSize / 8}, is an eighth of the image_size in the training arguments.`,
    )
    return imageSize / 8
  }
  throw new DiTError(
    'ERR_DIT_OPTION',
    `${file}: the size of the latent cannot be seen in the weights and no configuration says it. ` +
      'Give config: { latentSize }, in latent pixels (pixels / 8 for the Stable Diffusion VAEs)',
  )
}

/** One number or two, as [height, width]. */
function pair(size: number | readonly [number, number]): [number, number] {
  return typeof size === 'number' ? [size, size] : [size[0], size[1]]
}

/** The same object without the keys whose value is undefined. */
function compact<T extends object>(input: T): { [K in keyof T]: Exclude<T[K], undefined> } & T {
  return Object.fromEntries(Object.entries(input).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]: Exclude<T[K], undefined>
  } & T
}
