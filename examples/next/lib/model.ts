// One model for the whole process, loaded when it is first asked for. Next.js may load a module more than once
// (each route has its bundle, and changes reload it in development), so it is kept beside them.
import { DiT } from 'dit-native'

const kept = globalThis as { dit?: Promise<DiT> | undefined }

export function model(): Promise<DiT> {
  kept.dit ??= DiT.load(process.env.MODEL ?? 'demo', { maxQueue: 32 }).catch((error) => {
    kept.dit = undefined // the next request tries again
    throw error
  })
  return kept.dit
}
