// Learning rates and averages, as functions of the number of the step alone.

import { DiTError, show } from '../errors.js'
import type { LearningRateSchedule, TrainingSettings } from './options.js'

/**
 * The learning rate of a step, counted from 1.
 *
 *   linear   lr min(1, step / warmup)
 *   cosine   the same up to `warmup`, then minLr + (lr - minLr) (1 + cos(pi p)) / 2, where p goes from
 *            0 to 1 at the last step (Loshchilov & Hutter 2017, equation 5)
 *
 * Throws ERR_DIT_OPTION when a function of the caller gives no rate.
 *
 * @internal
 */
export function learningRate(
  settings: Pick<TrainingSettings, 'lr' | 'schedule' | 'warmup' | 'minLr' | 'steps'>,
  custom: LearningRateSchedule | undefined,
  step: number,
): number {
  const { lr, schedule, warmup, minLr, steps } = settings
  if (typeof custom === 'function') return checked(custom(step), step)
  if (schedule === 'constant') return lr
  if (step <= warmup) return (lr * step) / warmup
  if (schedule === 'linear') return lr
  const part = Math.min(1, (step - warmup) / ((steps as number) - warmup))
  return minLr + ((lr - minLr) * (1 + Math.cos(Math.PI * part))) / 2
}

/**
 * The share of the averaged weights that stays in a step, counted from 1. With the warm-up it grows with
 * the steps, so that the average is always that of about the last tenth of them, and the random weights
 * of the beginning are forgotten in a training of any length. Without, they have a share of
 * emaDecay^steps: 37 % after 10 000 steps of the usual 0.9999.
 *
 * @internal
 */
export function averaging(
  { emaDecay, emaWarmup }: Pick<TrainingSettings, 'emaDecay' | 'emaWarmup'>,
  step: number,
): number {
  return emaWarmup ? Math.min(emaDecay, (1 + step) / (10 + step)) : emaDecay
}

function checked(rate: unknown, step: number): number {
  if (typeof rate === 'number' && rate >= 0 && Number.isFinite(Math.fround(rate))) return rate
  throw new DiTError(
    'ERR_DIT_OPTION',
    `Expected a finite number of at least 0 from schedule(${step}) but got ${show(rate)}`,
  )
}
