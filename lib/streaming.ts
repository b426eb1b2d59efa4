import { following } from './aborts.js'
import { Channel } from './channel.js'
import type { ImagesEvent, LatentsEvent, PreviewEvent, ProgressEvent } from './events.js'

/** What `dit.stream` yields. The last one has the type 'images', or 'latents'. */
export type StreamEvent = ProgressEvent | PreviewEvent | ImagesEvent | LatentsEvent

interface Given {
  signal?: AbortSignal | undefined
  onProgress?: ((event: ProgressEvent | PreviewEvent) => void) | undefined
}

/**
 * A call's events as they come, or, for a consumer who is slower than they are, the latest of each kind:
 * of progress, and of the previews of each image. The result is the last one. Leaving the iteration
 * aborts the call.
 *
 * @internal
 */
export async function* streamEvents<Options extends Given>(
  call: (options: Options) => Promise<ImagesEvent | LatentsEvent>,
  given: Options,
): AsyncGenerator<StreamEvent, void, undefined> {
  const { controller, unfollow } = following(given.signal)
  const events = new Channel<StreamEvent>()
  const onProgress = (event: ProgressEvent | PreviewEvent) => {
    given.onProgress?.(event)
    events.push(event, event.type === 'preview' ? event.index : event.type)
  }
  const { signal } = controller
  call({ ...given, signal, onProgress }).then(
    (last) => {
      events.push(last)
      events.end()
    },
    (error) => events.fail(error),
  )
  try {
    yield* events
  } finally {
    unfollow()
    controller.abort()
  }
}
