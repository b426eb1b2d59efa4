import { SingleBar } from 'cli-progress'
import type { ModelProgress } from '../options.js'
import { duration, scaled } from './units.js'

/** Seconds between two lines where there is no terminal. */
const secondsPerLine = 5

/** The rate is that of so many last seconds or more: others may want the processor for a while. */
const rateSeconds = 15

const clock = () => performance.now() / 1000

/** One thing that is under way. */
interface Task {
  name: string
  unit: string
  begin: number
  /** What was done then. */
  begun: number
  done: number
  total: number
  /** What else there is to tell. */
  detail: string
  /** What was done when, about every half second of the last `rateSeconds`, and once before. */
  recent: { time: number; done: number }[]
  /** When its last line was printed, and what was done then. */
  told: number
  toldDone: number
}

/**
 * Tells how far a command is, on stderr: a bar with rate and time left on a terminal, else a line
 * every few seconds and one at the end of everything that took that long.
 */
export class Progress {
  readonly #stream: NodeJS.WriteStream
  readonly #quiet: boolean
  readonly #now: () => number
  #task: Task | undefined
  #bar: SingleBar | undefined

  /** `now` tells the time in seconds. */
  constructor({ quiet = false, stream = process.stderr, now = clock } = {}) {
    this.#quiet = quiet
    this.#stream = stream
    this.#now = now
  }

  /**
   * `done` of `total` units of `name` are done. Another name ends what was under way before; the clock
   * starts then, so what is done already does not count for the rate.
   */
  update(name: string, unit: string, done: number, total: number, detail = ''): void {
    if (this.#quiet) return
    const now = this.#now()
    if (this.#task?.name !== name) {
      this.end()
      const recent = [{ time: now, done }]
      this.#task = {
        name,
        unit,
        begin: now,
        begun: done,
        done,
        total,
        detail,
        recent,
        told: now,
        toldDone: -1,
      }
    }
    const task = this.#task as Task
    task.done = done
    task.total = total
    task.detail = detail
    remember(task, now)
    if (this.#stream.isTTY) this.#draw(task, now)
    else if (now - task.told >= secondsPerLine) {
      task.told = now
      task.toldDone = done
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

  /** A line of its own; what is under way goes on. */
  say(text: string): void {
    if (this.#quiet) return
    if (this.#bar) {
      this.#bar.stop() // the next update draws another below
      this.#bar = undefined
    }
    this.#stream.write(`${text}\n`)
  }

  /** Nothing is under way any more. */
  end(): void {
    const task = this.#task
    if (task === undefined) return
    const now = this.#now()
    if (this.#bar) {
      this.#draw(task, now)
      this.#bar.stop()
      this.#bar = undefined
    } else if (task.told > task.begin && task.toldDone !== task.done) {
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

function remember({ recent, done }: Task, time: number): void {
  if (time - (recent.at(-1)?.time as number) < 0.5) return
  recent.push({ time, done })
  while (recent[1] && time - recent[1].time >= rateSeconds) recent.shift()
}

/** 'sampling: 12 of 40 steps, 3.20 steps/s, 8.75 s left'; at the end the rate and time of it all. */
function describe(task: Task, now: number): string {
  const { name, unit, begin, begun, done, total, detail, recent } = task
  const isBytes = unit === 'B'
  const count = (value: number) => {
    if (isBytes) return scaled(value, 'B')
    return value < 1e5 ? String(value) : scaled(value, '')
  }
  const more = detail === '' ? '' : `, ${detail}`
  const amount = `${name}: ${count(done)} of ${count(total)}${isBytes ? '' : ` ${unit}`}${more}`
  const since = done < total && recent[0] ? recent[0] : { time: begin, done: begun }
  const rate = (done - since.done) / (now - since.time)
  if (!(rate > 0 && Number.isFinite(rate))) return amount
  const pace = isBytes ? `${scaled(rate, 'B')}/s` : `${scaled(rate, '')} ${unit}/s`
  return done < total
    ? `${amount}, ${pace}, ${duration((total - done) / rate)} left`
    : `${amount}, ${pace}, ${duration(now - begin)}`
}
