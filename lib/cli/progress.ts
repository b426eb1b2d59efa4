import { SingleBar } from 'cli-progress'
import type { ModelProgress } from '../options.js'
import { duration, scaled } from './units.js'

/** Seconds between two lines where there is no terminal. */
const secondsPerLine = 5

/** One thing that is under way. */
interface Task {
  name: string
  unit: string
  begin: number
  done: number
  total: number
  /** When its last line was printed. */
  told: number
}

/**
 * Tells how far a command is, on stderr: a bar with rate and time left on a terminal, else a line
 * every few seconds and one at the end of everything that took that long.
 */
export class Progress {
  readonly #stream: NodeJS.WriteStream
  readonly #quiet: boolean
  #task: Task | undefined
  #bar: SingleBar | undefined

  constructor({ quiet = false, stream = process.stderr } = {}) {
    this.#quiet = quiet
    this.#stream = stream
  }

  /** `done` of `total` units of `name` are done. Another name ends what was under way before. */
  update(name: string, unit: string, done: number, total: number): void {
    if (this.#quiet) return
    const now = performance.now() / 1000
    if (this.#task?.name !== name) {
      this.end()
      this.#task = { name, unit, begin: now, done, total, told: now }
    }
    const task = this.#task as Task
    task.done = done
    task.total = total
    if (this.#stream.isTTY) this.#draw(task, now)
    else if (now - task.told >= secondsPerLine) {
      task.told = now
      this.#stream.write(`${describe(task, now)}\n`)
    }
  }

  /** Progress of `DiT.load`. */
  readonly load = (event: ModelProgress): void => {
    if (event.phase === 'download') {
      const { file, filesDone, filesTotal, loaded, total } = event
      this.update(`downloading ${file} (${filesDone + 1} of ${filesTotal})`, 'B', loaded, total)
    } else if (event.phase === 'prepare') {
      this.update('preparing the weights', 'weights', event.loaded, event.total)
    }
  }

  /** Nothing is under way any more. */
  end(): void {
    const task = this.#task
    if (task === undefined) return
    const now = performance.now() / 1000
    if (this.#bar) {
      this.#draw(task, now)
      this.#bar.stop()
      this.#bar = undefined
    } else if (task.told > task.begin) {
      this.#stream.write(`${describe(task, now)}\n`)
    }
    this.#task = undefined
  }

  #draw(task: Task, now: number): void {
    const payload = { text: describe(task, now) }
    if (this.#bar === undefined) {
      this.#bar = new SingleBar({
        format: '[{bar}] {text}',
        barCompleteChar: '=',
        barIncompleteChar: ' ',
        barsize: 24,
        fps: 10,
        hideCursor: true,
        linewrap: false,
        stream: this.#stream,
      })
      this.#bar.start(task.total, task.done, payload)
    } else {
      this.#bar.setTotal(task.total)
      this.#bar.update(task.done, payload)
    }
  }
}

/** 'sampling: 12 of 40 steps, 3.20 steps/s, 8.75 s left'. */
function describe({ name, unit, begin, done, total }: Task, now: number): string {
  const seconds = now - begin
  const amount =
    unit === 'B'
      ? `${scaled(done, 'B')} of ${scaled(total, 'B')}`
      : `${scaled(done, '')} of ${scaled(total, unit)}`
  if (done === 0 || seconds === 0) return `${name}: ${amount}`
  const rate = done / seconds
  const left = done < total ? `${duration((total - done) / rate)} left` : duration(seconds)
  return `${name}: ${amount}, ${scaled(rate, unit)}/s, ${left}`
}
