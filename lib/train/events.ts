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
  batchSize: number
  globalBatch: number
  seed: bigint
  /** Memory, in bytes. */
  parameterBytes: number
  activationBytes: number
}

/** After a step; with `logEvery`, the losses are means since the last such event. */
export interface StepEvent extends Omit<StepMetrics, 'rows'> {
  type: 'step'
  /** How often every item has been seen, with fraction; undefined where their number is not known. */
  epoch: number | undefined
  /** Items taken from the data. */
  position: number
  /** Seconds per step that were spent waiting for data, and their share of the time. */
  dataWait: number
  dataWaitShare: number
  /** Items that could not be used, since the beginning. */
  skippedItems: number
  /** Time left; undefined where nothing ends the training. */
  etaSeconds: number | undefined
}

/** After a checkpoint was written. */
export interface CheckpointEvent {
  type: 'checkpoint'
  step: number
  folder: string
}

/** After a sample grid was made. */
export interface SamplesEvent {
  type: 'samples'
  step: number
  image: RawImage
  file: string | undefined
}

/** Too many steps in a row were skipped: training goes back to a checkpoint, on other data. */
export interface RollbackEvent {
  type: 'rollback'
  /** The step it was at, and the one it goes on from. */
  from: number
  step: number
  folder: string
  /** Of the learning rate, from now on. */
  lrFactor: number
}

/** Something that does not end the training: a checkpoint that could not be written, say. */
export interface WarningEvent {
  type: 'warning'
  step: number
  message: string
  error?: unknown
}

/** Items that could not be used. */
export interface SkippedItemsEvent {
  type: 'skippedItems'
  step: number
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
