import * as v from 'valibot'
import { parseFile } from './dit_config.js'
import type { ScheduleConfig } from './types.js'

/** The schedule of the official DiTs: linear betas, T = 1000. */
export const defaultSchedule: ScheduleConfig = {
  kind: 'linear',
  steps: 1000,
  betaStart: 1e-4,
  betaEnd: 0.02,
}

const beta = v.pipe(v.number(), v.gtValue(0), v.ltValue(1))

const schema = v.pipe(
  v.looseObject({
    num_train_timesteps: v.nullish(
      v.pipe(v.number(), v.safeInteger(), v.minValue(1), v.maxValue(1_000_000)),
      defaultSchedule.steps,
    ),
    beta_schedule: v.nullish(v.picklist(['linear', 'squaredcos_cap_v2']), 'linear'),
    beta_start: v.nullish(beta, defaultSchedule.betaStart),
    beta_end: v.nullish(beta, defaultSchedule.betaEnd),
    prediction_type: v.nullish(v.literal('epsilon')),
    trained_betas: v.nullish(v.null()),
    rescale_betas_zero_snr: v.nullish(v.literal(false)),
  }),
  v.check(
    ({ beta_start, beta_end }) => beta_start <= beta_end,
    'beta_start must not exceed beta_end',
  ),
)

/**
 * Reads a scheduler_config.json of diffusers: only what the model was trained with, not which sampler
 * it names.
 *
 * Throws ERR_DIT_FORMAT for other betas than linear and squared cosine, and for models that predict
 * something else than the noise.
 */
export function parseScheduleJson(json: unknown, file: string): ScheduleConfig {
  const config = parseFile(schema, json, file)
  return {
    kind: config.beta_schedule === 'linear' ? 'linear' : 'cosine',
    steps: config.num_train_timesteps,
    betaStart: config.beta_start,
    betaEnd: config.beta_end,
  }
}

const ownSchema = v.strictObject({
  kind: v.picklist(['linear', 'cosine']),
  steps: v.pipe(v.number(), v.safeInteger(), v.minValue(1), v.maxValue(1_000_000)),
  betaStart: beta,
  betaEnd: beta,
})

/** Reads the `schedule` of this package's own configuration. Throws ERR_DIT_FORMAT. */
export function parseOwnSchedule(json: unknown, where: string): ScheduleConfig {
  return parseFile(ownSchema, json, where)
}
