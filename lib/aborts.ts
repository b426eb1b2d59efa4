// Abort signals that follow others. AbortSignal.any() would do, but for two things in Node 20: a signal
// that lives long, as that of a server's end, remembers every signal that was ever derived from it; and
// signals warn when they have more than ten listeners, though a program may well have eleven calls.

import { setMaxListeners } from 'node:events'

/** Who wants to know of a signal's abort. */
const followers = new WeakMap<AbortSignal, Set<() => void>>()

/**
 * Calls back when the signal, which is not aborted yet, is. Returns what ends that: to be called when
 * nobody wants to know any more. However many ask, the signal has one listener, and none afterwards.
 *
 * @internal
 */
export function onAbort(signal: AbortSignal, callback: () => void): () => void {
  const all = followers.get(signal) ?? listen(signal)
  const entry = () => callback() // a new one each time, even for the same function
  all.add(entry)
  return () => {
    if (!all.delete(entry) || all.size > 0 || followers.get(signal) !== all) return
    followers.delete(signal)
    signal.removeEventListener('abort', tellFollowers)
  }
}

function listen(signal: AbortSignal): Set<() => void> {
  const all = new Set<() => void>()
  followers.set(signal, all)
  signal.addEventListener('abort', tellFollowers, { once: true })
  return all
}

function tellFollowers(this: AbortSignal): void {
  const all = followers.get(this)
  followers.delete(this)
  for (const entry of all ?? []) entry()
}

/**
 * A controller of one's own, which is aborted with the signal's reason when the signal is. `unfollow`
 * ends that: to be called when the work is over.
 *
 * @internal
 */
export function following(signal: AbortSignal | undefined): {
  controller: AbortController
  unfollow: () => void
} {
  const controller = new AbortController()
  setMaxListeners(0, controller.signal)
  if (signal === undefined) return { controller, unfollow: () => {} }
  const follow = () => controller.abort(signal.reason)
  if (!signal.aborted) return { controller, unfollow: onAbort(signal, follow) }
  follow()
  return { controller, unfollow: () => {} }
}
