// The whole surface of dit_native.node, typed by hand: the contract between lib/ and native/addon.
// Plain data in, events out; every call returns at once. Errors thrown by a call and those of
// failed jobs carry a code of errors.ts.

import type { DiTErrorCode } from './lib/errors.js'
import type {
  DiTConfig,
  DType,
  ScheduleConfig,
  TensorSource,
  VaeConfig,
} from './lib/formats/types.js'

export type Precision = 'fp32' | 'tf32' | 'bf16'

export interface ModelSpec {
  device: string // 'cpu', 'cuda', 'cuda:1'; in tests 'cuda:emulated'
  precision: Precision
  threads: number // 0: as many as there are cores
  maxLanes: number // images in the making at once
  maxQueue: number | null // images that may wait; null: any number
  dit: {
    config: DiTConfig
    tensors: TensorSource[] | null // null: a fresh model from seed
    stored: DiTConfig | null // the tensors' size where it is another; what is new follows from seed
    seed: bigint
  }
  vae: { config: VaeConfig; tensors: TensorSource[] } | null
  schedule: ScheduleConfig
}

export interface ModelInfo {
  device: string
  precision: Precision
  weightBytes: number
  vaeBytes: number
  activationBytes: number
  trainerBytes: number // 0: not in training
}

/** A call of the API, whose images sample jobs bring. */
export interface CallRequest {
  images: number
  steps: number // of one image
  rows: number // of one image, in all its steps: 1 or 2 a step
  priority: number
  caller: string // '': a caller of its own
  deadline: number | null // seconds from now
  decoded: boolean // whether images are what it gives
}

export interface CallStats {
  maxLanes: number
  lanes: number
  waiting: number
  suspended: number
  images: number
  rounds: number
  refusedBusy: number
  refusedDeadline: number
  cancelled: number
  busySeconds: number
  roundSeconds: number
  rowSeconds: number
  imagesPerSecond: number | null
}

export interface SampleRequest {
  call: number // what admit gave; 0: a call of its own
  sampler: 'ddpm' | 'ddim' | 'dpm++'
  spacing: string // '25', 'ddim50', '10,20,30'
  eta: number
  clip: boolean
  labels: Int32Array // n; -1: vectors[i]
  vectors: (Float32Array | null)[] | null
  seeds: BigUint64Array // n
  noise: Float32Array | null // [n, C, H, W]
  stepNoise: Float32Array | null // [n, steps, C, H, W]
  guidance: number
  guidanceChannels: number
  guidanceInterval: [from: number, to: number] // of t / T
  latentOnly: boolean
  previewEvery: number // 0: never
  previewKind: 'linear' | 'decode' // without a VAE both are the pixels
}

export interface DenoiseRequest {
  n: number
  x: Float32Array // [n, C, H, W]
  timesteps: Float32Array
  labels: Int32Array
  vectors: (Float32Array | null)[] | null
  guidance: number
  guidanceChannels: number
}

export interface DecodeRequest {
  n: number
  height: number
  width: number
  latents: Float32Array // [n, Cz, h, w]
}

export interface EncodeRequest {
  n: number
  height: number
  width: number
  images: Float32Array // [n, C, H, W] in [-1, 1]
  seeds: BigUint64Array | null // null: the posterior's mode
  moments: boolean // the posterior itself: [n, 2 Cz, h, w], means then deviations, in the VAE's own scale
}

/**
 * Makes the model trainable; replaces the trainer that there is, which is gone even when this fails.
 * Sampling and saving 'dit' use the EMA weights from then on; an image in the making, and those that
 * join it, end with the weights that it began with.
 */
export interface TrainerRequest {
  seed: bigint
  loss: 'hybrid' | 'mse'
  labelDropout: number
  beta1: number
  beta2: number
  eps: number
  weightDecay: number
  decayAll: boolean // biases and tables too
  checkpointEvery: number // 0: keep all activations; k: replay k blocks at once
  microBatch: number // 0: as many rows as fit
  memoryLimit: number // bytes; 0: what is free
  globalBatch: number
  /** To continue: the parts of a checkpoint. */
  state: {
    step: number
    model: TensorSource[]
    ema: TensorSource[]
    expAvg: TensorSource[]
    expAvgSq: TensorSource[]
  } | null
}

/** Forward and backward of some rows of a step. Failing or cancelled, it forgets all rows of the step. */
export interface AccumulateRequest {
  n: number
  x: Float32Array // [n, C, H, W]
  deviation: Float32Array | null // [n, C, H, W]: trained on is (x + deviation z - shift) scale
  scale: number
  shift: number
  labels: Int32Array // n
  firstRow: number // of x in the global batch
  globalBatch: number
  timesteps: Int32Array | null // n; null: random
  noise: Float32Array | null // [n, C, H, W]; null: random
  drop: Uint8Array | null // n, 1: the null class; null: random
}

export interface ApplyRequest {
  lr: number
  emaDecay: number
  clipNorm: number // 0: never
  skipAbove: number // 0: never
}

export interface TrainerInfo {
  microBatch: number
  step: number
  parameterBytes: number
  activationBytes: number
}

export interface StepResult {
  outcome: 'applied' | 'nonFinite' | 'spike'
  step: number // applied so far, this one included
  rows: number
  loss: number
  mse: number
  vb: number
  gradNorm: number
  quartileLoss: Float64Array // 4; NaN without rows
}

export interface SaveRequest {
  path: string
  header: Uint8Array // length and JSON, as safetensors has them
  part: 'dit' | 'vae' | 'model' | 'ema' | 'expAvg' | 'expAvgSq' // the last four: of a model in training
  tensors: {
    name: string
    rowBegin: number
    rowEnd: number
    dtype: Extract<DType, 'F32' | 'BF16'>
  }[]
}

// Image data: [n, height, width, channels] bytes. Float data: row-major, `shape`.
export type JobEvent =
  | { kind: 'progress'; job: number; done: number; total: number }
  | {
      kind: 'preview'
      job: number
      image: number
      done: number
      total: number
      bytes: Uint8Array
      height: number
      width: number
      channels: number
    }
  | {
      kind: 'done'
      job: number
      bytes: Uint8Array | null
      height: number
      width: number
      channels: number
      floats: Float32Array | null
      shape: number[]
      trainer: TrainerInfo | null
      step: StepResult | null
      queueSeconds: number
      sampleSeconds: number
      decodeSeconds: number
    }
  | { kind: 'failed'; job: number; code: DiTErrorCode | 'ERR_DIT_ABORTED'; message: string }

/** A model and its thread. `listener` is called on the JS thread with every event of every job. */
export class Model {
  constructor(listener: (event: JobEvent) => void)
  load(spec: ModelSpec): number
  info(): ModelInfo // after the load job is done
  stats(): CallStats
  admit(request: CallRequest): number // throws ERR_DIT_BUSY or ERR_DIT_DEADLINE, with retryAfter in seconds
  leave(call: number): void // its images that have not ended are not wanted any more
  sample(request: SampleRequest): number
  denoise(request: DenoiseRequest): number
  decode(request: DecodeRequest): number
  encode(request: EncodeRequest): number
  save(request: SaveRequest): number
  train(request: TrainerRequest): number // done: trainer
  release(): number // frees the trainer; its averaged weights stay until there is another
  accumulate(request: AccumulateRequest): number
  apply(request: ApplyRequest): number // done: step
  cancel(job: number): void // the job fails with ERR_DIT_ABORTED within a step
  close(): number // what is under way fails with ERR_DIT_CLOSED; memory is free when it is done
}

/** A device of this machine, or why it cannot be used. */
export interface DeviceInfo {
  device: string // 'cpu', 'cuda:0'; 'cuda' where there is none
  problem: string // why it cannot be used; '' where it can
  name: string // of the processor
  kernels: string // CPU: 'generic', 'avx2', 'avx512', 'avx512bf16'; GPU: 'sm_80', 'sm_90a'
  computeCapability: string // of a GPU, '9.0'
  precisions: Precision[]
  memoryBytes: number
}

export function cpuDevice(): DeviceInfo

/**
 * The GPUs, or one entry that says why there are none. Starts NVIDIA's driver in this process, which
 * a damaged one may hang or end.
 */
export function cudaDevices(): DeviceInfo[]

/** Why `cudaDevices` would find none, as far as can be said without the driver; '' where it has to be asked. */
export function cudaObstacle(): string

/** Opens a device and checks what one small operation gives. Throws ERR_DIT_DEVICE with the reason. */
export function tryDevice(device: string): void

/** The tables of a respaced schedule (float64), as the samplers use them. */
export function schedule(
  config: ScheduleConfig,
  spacing: string,
): Record<string, Float64Array> & { timestepMap: Float64Array }

export const version: string
