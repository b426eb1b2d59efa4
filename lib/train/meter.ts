import type { StepEvent } from './events.js'
import type { StepMetrics } from './trainer.js'

/** How much of the pace so far stays in that of one more step, for the time left. */
const smoothing = 0.9

/**
 * The steps between two events: means of their losses, sums of their times.
 *
 * @internal
 */
export class Meter {
  #steps = 0
  #rows = 0
  #seconds = 0
  #waited = 0
  #losses: Pick<StepMetrics, 'loss' | 'mse' | 'vb' | 'quartileLoss'>[] = []
  #pace: number | undefined

  /** A step that took `seconds`, `waited` of them for data. */
  add(metrics: StepMetrics, seconds: number, waited: number): void {
    this.#steps++
    this.#rows += metrics.rows
    this.#seconds += seconds
    this.#waited += waited
    if (metrics.outcome === 'applied') this.#losses.push(metrics)
    this.#pace =
      this.#pace === undefined ? seconds : smoothing * this.#pace + (1 - smoothing) * seconds
  }

  /** Of the steps since the last call; the last of them was `last`. */
  take(
    last: StepMetrics,
    stepsLeft: number | undefined,
  ): Omit<StepEvent, 'epoch' | 'position' | 'skippedItems'> {
    const { rows: _, ...metrics } = last
    const losses = last.outcome === 'applied' ? this.#losses : [last]
    const mean = (of: (metrics: (typeof losses)[number]) => number) => average(losses.map(of))
    const event = {
      type: 'step' as const,
      ...metrics,
      loss: mean(({ loss }) => loss),
      mse: mean(({ mse }) => mse),
      vb: mean(({ vb }) => vb),
      quartileLoss: last.quartileLoss.map((_, i) => {
        return average(losses.map(({ quartileLoss }) => quartileLoss[i] as number).filter(isNumber))
      }),
      secondsPerStep: this.#seconds / this.#steps,
      imagesPerSecond: this.#rows / this.#seconds,
      dataWait: this.#waited / this.#steps,
      dataWaitShare: this.#waited / this.#seconds,
      etaSeconds: stepsLeft === undefined ? undefined : stepsLeft * (this.#pace ?? 0),
    }
    this.#steps = 0
    this.#rows = 0
    this.#seconds = 0
    this.#waited = 0
    this.#losses = []
    return event
  }
}

const isNumber = (value: number) => !Number.isNaN(value)

function average(values: number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length
}
