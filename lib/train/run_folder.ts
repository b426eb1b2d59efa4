// What a training leaves in its folder:
//
//   checkpoints/step-0000100/  the last few, and `latest`, a link to the newest
//   metrics.jsonl              a line per event
//   samples/step-0000100.png   sample grids
//   model.safetensors          the averaged weights, at the end
//   lock                       who trains there, while it does

import { mkdir, readdir, readlink, rename, rm, symlink } from 'node:fs/promises'
import path from 'node:path'
import { DiTError, fileError } from '../errors.js'
import { sync } from '../formats/file.js'
import type { Engine } from '../jobs.js'
import { isCheckpoint, unfinished, writeCheckpoint } from './checkpoint.js'
import { FolderLock } from './lock.js'
import type { TrainedModel, TrainerState } from './state.js'

/** `step-0000100`; `step-0000100.2` where the step was saved before, and that is not to be touched. */
const pattern = /^step-(\d{7,})(?:\.(\d+))?$/

/** Orders checkpoints by step, then by how often the step was saved. */
function rank(name: string): [step: number, again: number] {
  const [, step, again] = pattern.exec(name) ?? []
  return [Number(step), Number(again ?? 1)]
}

function byRank(a: string, b: string): number {
  const [stepA, againA] = rank(a)
  const [stepB, againB] = rank(b)
  return stepA - stepB || againA - againB
}

/** @internal */
export function stepName(step: number): string {
  return `step-${String(step).padStart(7, '0')}`
}

/** The folder of one training. @internal */
export class RunFolder {
  readonly path: string
  readonly #checkpoints: string
  #lock: FolderLock | undefined

  private constructor(folder: string) {
    this.path = path.resolve(folder)
    this.#checkpoints = path.join(this.path, 'checkpoints')
  }

  /** A folder to look at, which need not exist. */
  static at(folder: string): RunFolder {
    return new RunFolder(folder)
  }

  /**
   * A folder to write to, until it is closed: makes it where there is none, and removes what a training
   * that was killed left half done.
   *
   * Rejects with ERR_DIT_BUSY while another training writes there, with ERR_DIT_FILE.
   */
  static async open(folder: string): Promise<RunFolder> {
    const run = new RunFolder(folder)
    try {
      await mkdir(run.#checkpoints, { recursive: true })
      run.#lock = await FolderLock.take(run.path)
      for (const name of await readdir(run.#checkpoints)) {
        if (!name.endsWith(unfinished)) continue
        await rm(path.join(run.#checkpoints, name), { recursive: true, force: true })
      }
    } catch (cause) {
      await run.close()
      throw fileError(folder, 'write', cause)
    }
    return run
  }

  async close(): Promise<void> {
    await this.#lock?.release()
    this.#lock = undefined
  }

  get metrics(): string {
    return path.join(this.path, 'metrics.jsonl')
  }

  get weights(): string {
    return path.join(this.path, 'model.safetensors')
  }

  samples(step: number): string {
    return path.join(this.path, 'samples', `${stepName(step)}.png`)
  }

  /** Whether a path lies in this folder. */
  owns(checkpoint: string): boolean {
    return path.dirname(path.resolve(checkpoint)) === this.#checkpoints
  }

  /** The checkpoint to go on from: what `latest` names, or else the one of the last step. */
  async latest(): Promise<string | undefined> {
    const linked = await this.#linked()
    if (linked !== undefined && (await isCheckpoint(linked))) return linked
    const last = (await this.#list()).at(-1)
    return last === undefined ? undefined : path.join(this.#checkpoints, last)
  }

  /** Refuses to begin where a training was. */
  async expectNew(): Promise<void> {
    const latest = await this.latest()
    if (latest === undefined) return
    throw new DiTError(
      'ERR_DIT_OPTION',
      `${this.path} holds the checkpoints of a training. Give resume (--resume) to go on with it, or ` +
        'another out',
    )
  }

  /** Adds a checkpoint, has `latest` name it, and removes what are too many before it. */
  async save(
    engine: Engine,
    model: TrainedModel,
    state: TrainerState,
    keep: number,
  ): Promise<string> {
    const all = await this.#list()
    const same = all.filter((name) => rank(name)[0] === state.step)
    const again = 1 + Math.max(0, ...same.map((name) => rank(name)[1]))
    const name = again === 1 ? stepName(state.step) : `${stepName(state.step)}.${again}`
    const folder = path.join(this.#checkpoints, name)
    await writeCheckpoint(folder, engine, model, state)
    try {
      await this.#link(name)
      // Those of later steps are of a training that went on from here before.
      const before = all.filter((other) => byRank(other, name) < 0)
      for (const old of before.slice(0, Math.max(0, before.length - (keep - 1)))) {
        await this.#remove(old)
      }
    } catch (cause) {
      throw fileError(this.#checkpoints, 'write', cause)
    }
    return folder
  }

  /** Never half a checkpoint under a name that says it is one. */
  async #remove(name: string): Promise<void> {
    const aside = path.join(this.#checkpoints, `${name}.old${unfinished}`)
    await rename(path.join(this.#checkpoints, name), aside)
    await rm(aside, { recursive: true })
  }

  /** The folder that `latest` names. */
  async #linked(): Promise<string | undefined> {
    try {
      return path.join(this.#checkpoints, await readlink(path.join(this.#checkpoints, 'latest')))
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      throw fileError(this.#checkpoints, 'read', cause)
    }
  }

  async #link(name: string): Promise<void> {
    const made = path.join(this.#checkpoints, `latest${unfinished}`)
    await rm(made, { force: true })
    await symlink(name, made)
    await rename(made, path.join(this.#checkpoints, 'latest'))
    await sync(this.#checkpoints)
  }

  /** The names of the checkpoints, all of them whole, by step. */
  async #list(): Promise<string[]> {
    try {
      const names = await readdir(this.#checkpoints)
      return names.filter((name) => pattern.test(name)).sort(byRank)
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return []
      throw fileError(this.#checkpoints, 'read', cause)
    }
  }
}
