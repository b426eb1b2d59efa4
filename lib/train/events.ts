import type { SkippedItem } from '../data/types.js'
import type { RawImage } from '../image.js'
import type { StepMetrics } from './trainer.js'

/** Before the first step. */
export interface StartEvent {
  type: 'start'
  /** Steps done, where the training goes on from a checkpoint. */
  step: number
  /** Steps in all; undefined where nothing ends the training. */
  steps: number | undefined
  /** The checkpoint it goes on from. */
  resumed: string | undefined
  /** Items of an epoch, where that is known. */
  items: number | undefined
  /** Rows that go through the model at once. */
  batchSize: number
  /** Rows of a step. */
  globalBatch: number
  /** Of all that is random in it. */
  seed: bigint
  /** Memory of weights, gradients, optimiser and average, in bytes. */
  parameterBytes: number
  /** Memory of what is kept from the forward pass for the backward pass, in bytes. */
  activationBytes: number
}

/** After a step; with `logEvery`, the losses are means since the last such event. */
export interface StepEvent extends Omit<StepMetrics, 'rows'> {
  type: 'step'
  /** How often every item has been seen, with fraction; undefined where their number is not known. */
  epoch: number | undefined
  /** Items taken from the data. */
  position: number
  /** Seconds per step that were spent waiting for data. */
  dataWait: number
  /** Their share of the time, 0 to 1. */
  dataWaitShare: number
  /** Items that could not be used, since the beginning. */
  skippedItems: number
  /** Seconds left; undefined where nothing ends the training. */
  etaSeconds: number | undefined
}

/** After a checkpoint was written. */
export interface CheckpointEvent {
  type: 'checkpoint'
  /** Steps applied before it. */
  step: number
  /** The checkpoint, which `DiT.load` and `resume` take. */
  folder: string
}

/** After a sample grid was made. */
export interface SamplesEvent {
  type: 'samples'
  /** Steps applied before it. */
  step: number
  /** The grid. */
  image: RawImage
  /** Where it was written; undefined without `out`. */
  file: string | undefined
}

/** Too many steps in a row were skipped: training goes back to a checkpoint, on other data. */
export interface RollbackEvent {
  type: 'rollback'
  /** The step it was at. */
  from: number
  /** The step it goes on from. */
  step: number
  /** The checkpoint it goes on from. */
  folder: string
  /** What the learning rate is multiplied with from now on. */
  lrFactor: number
}

/** Something that does not end the training: a checkpoint that could not be written, say. */
export interface WarningEvent {
  type: 'warning'
  /** Steps applied before it. */
  step: number
  /** For people. */
  message: string
  /** What was thrown, where something was. */
  error?: unknown
}

/** Items that could not be used. */
export interface SkippedItemsEvent {
  type: 'skippedItems'
  /** Steps applied before it. */
  step: number
  /** Those since the last such event. */
  items: SkippedItem[]
}

/** What `dit.train` yields. */
export type TrainEvent =
  | StartEvent
  | StepEvent
  | CheckpointEvent
  | SamplesEvent
  | RollbackEvent
  | WarningEvent
  | SkippedItemsEvent
