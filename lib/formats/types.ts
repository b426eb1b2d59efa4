/** The element types that the readers list. Names as in the safetensors format. */
export type DType =
  | 'F64'
  | 'F32'
  | 'F16'
  | 'BF16'
  | 'F8_E4M3'
  | 'F8_E5M2'
  | 'I64'
  | 'I32'
  | 'I16'
  | 'I8'
  | 'U64'
  | 'U32'
  | 'U16'
  | 'U8'
  | 'BOOL'

/** Bytes of one element. */
export const itemSize: Record<DType, number> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  F8_E4M3: 1,
  F8_E5M2: 1,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U64: 8,
  U32: 4,
  U16: 2,
  U8: 1,
  BOOL: 1,
}

/** Where the elements of one stored tensor lie: in `file`, element (i, j, …) at byte `offset + itemSize * (i * strides[0] + j * strides[1] + …)`, little-endian. */
export interface TensorPart {
  /** Path of the file. */
  readonly file: string
  /** Bytes from the start of the file to element (0, …, 0). */
  readonly offset: number
  readonly dtype: DType
  readonly shape: readonly number[]
  /** In elements, one per dimension, never negative; 0 where a dimension is expanded. */
  readonly strides: readonly number[]
}

/**
 * A tensor of the model under its canonical name: the concatenation of `parts` along dimension 0
 * (nearly always one part; three for an official `qkv` that a file stores as q, k and v).
 */
export interface TensorSource {
  readonly name: string
  readonly parts: readonly TensorPart[]
}

/** A canonical tensor that a model of some configuration has. */
export interface TensorSpec {
  readonly name: string
  readonly shape: readonly number[]
  /** True for `pos_embed`: computed when a file does not have it. */
  readonly optional?: boolean
}

/** The size of a DiT, complete. `DiTConfigInput` is the form in which users write it. */
export interface DiTConfig {
  /** Number of transformer blocks. */
  depth: number
  /** Width of a token. */
  hidden: number
  /** Attention heads; divides `hidden`. */
  heads: number
  /** Side of a patch, in latent pixels. */
  patchSize: number
  /** Height and width of the latent, in latent pixels; multiples of `patchSize`. */
  latentSize: [height: number, width: number]
  /** Channels of the latent. The model's output has twice as many when `learnSigma`. */
  channels: number
  /** Classes, without the null class. */
  numClasses: number
  /** True when the label table has one more row, index `numClasses`, for "no label". */
  nullClass: boolean
  /** True when the model predicts the variance beside the noise. */
  learnSigma: boolean
  /** Width of the MLP's hidden layer, 4 * hidden in the paper. */
  mlpHidden: number
}

/** What a user may say about a DiT: any subset, `latentSize` as one number when it is square. */
export type DiTConfigInput = Partial<Omit<DiTConfig, 'latentSize'>> & {
  latentSize?: number | readonly [height: number, width: number]
}

/** The size of an AutoencoderKL, complete. */
export interface VaeConfig {
  /** Channels of the image. */
  inChannels: number
  /** Channels of a decoded image. */
  outChannels: number
  /** Channels of a latent. */
  latentChannels: number
  /** Channels of each resolution, the finest first. There is a factor of 2 between neighbours. */
  blockOutChannels: number[]
  /** Residual blocks per resolution in the encoder; the decoder has one more. */
  layersPerBlock: number
  /** Groups of every group norm. */
  groups: number
  /** The model's latents are (z - shiftFactor) * scalingFactor, z the VAE's own; 0.18215 for Stable Diffusion's. */
  scalingFactor: number
  /** See `scalingFactor`; 0 for Stable Diffusion's. */
  shiftFactor: number
  /** True when a 1×1 convolution follows the encoder. */
  useQuantConv: boolean
  /** True when a 1×1 convolution precedes the decoder. */
  usePostQuantConv: boolean
  /** True when the middle of encoder and decoder has self-attention. */
  midBlockAddAttention: boolean
}

/** The diffusion process the model was trained with. */
export interface ScheduleConfig {
  /** How beta grows: linearly (Ho et al. 2020), or so that alpha-bar is a squared cosine (Nichol & Dhariwal 2021). */
  kind: 'linear' | 'cosine'
  /** Training timesteps T. */
  steps: number
  /** First beta of the linear schedule (at T = 1000; given as it is used). */
  betaStart: number
  /** Last beta of the linear schedule. */
  betaEnd: number
}

/** Which weights of a training checkpoint: `'ema'`, the averaged ones, or `'model'`, those in training. */
export type WeightsChoice = 'ema' | 'model'

/** Progress of the download of a Hugging Face repository. */
export interface LoadProgress {
  phase: 'download'
  /** The file's name within the repository. */
  file: string
  /** Bytes of this file so far. */
  loaded: number
  /** Bytes of this file in all. */
  total: number
  /** Files done, in this load. */
  filesDone: number
  /** Files in all, in this load. */
  filesTotal: number
}

export interface ResolveOptions {
  /** Which weights of a training checkpoint that has both. Default 'ema'. */
  weights?: WeightsChoice
  /** Sizes, or a preset's name, that win over what the checkpoint says. Checked against its shapes. */
  config?: DiTConfigInput | string
  /** A VAE to use instead of the source's own: a folder, a .safetensors or .bin file, or a Hugging Face id. */
  vae?: string
  /** Branch, tag or commit of a Hugging Face repository. Default 'main'. */
  revision?: string
  /** What the source 'demo' stands for: a path. */
  demoPath?: string
  signal?: AbortSignal
  onProgress?: (progress: LoadProgress) => void
}

/** A checkpoint whose headers were read and checked; no weight has been read. */
export interface LoadedSource {
  /** How the transformer's weights are stored. */
  kind: 'diffusers' | 'safetensors' | 'torch'
  /** One line for people: where the weights came from (file, folder, or hub id and commit) and which (ema, model). */
  description: string
  /** The weights chosen from a training checkpoint; undefined where the file has one set only. */
  weights?: WeightsChoice
  /** The Hugging Face repository, when it was one. */
  hub?: { id: string; revision: string; commit: string }
  /** What was assumed because nothing said it, in sentences. */
  notes: string[]
  dit: { config: DiTConfig; tensors: TensorSource[] }
  vae?: { config: VaeConfig; tensors: TensorSource[]; description: string }
  schedule: ScheduleConfig
  /** Class names. */
  id2label?: Record<number, string>
}
