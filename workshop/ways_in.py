"""The ways into a conversation: a sound file, a microphone, a record that is replayed, a server.

What this is: what `python chat.py` does with a chat.Partner when its options are read. It serves
chat.py. What this is not: the options (chat_options.py), the conversation (chat.py), or the devices
and files that it uses (sound_card.py, answer_file.py, record.py, server.py).

    python chat.py --in examples/question.wav --out answer.wav
"""
from workshop import answer_file, chat_options, command, pace, sound_card
from workshop.monologue import print_nothing
from workshop.record import recording


def talk(partner, args):
    """The way in that the options ask for."""
    pace.settle_threads(partner.model, partner.codec)
    chat_options.warn_of_context(partner.model.config, args.context)
    if args.way == "file":
        talk_to_file(partner, args)
    elif args.way == "replay":
        talk_again(partner, args)
    elif args.way == "serve":
        chat_options.server_module().serve(partner, args)
    else:
        talk_to_microphone(partner, args)


def talk_to_file(partner, args):
    """--in and --out: listen to a file, write the answer beside it."""
    config = partner.codec.config
    monologue = partner.monologue(command.print_while_read)
    with recording(args, partner) as record:
        user_audio, model_audio, seconds = partner.converse(args.question, monologue, args.seed,
                                                            record, args.tail)
        if not seconds:  # Ctrl-C in the first frame
            return
        answer_file.save(args, user_audio, model_audio, config.sample_rate)
    answer_file.report(args.target, model_audio, seconds, config, args.tail)


def talk_to_microphone(partner, args):
    """No --in: sound devices, until Ctrl-C."""
    config = partner.codec.config
    monologue = partner.monologue(print_nothing)
    devices = (args.input_device, args.output_device)
    with (sound_card.SoundCard(config.sample_rate, config.frame_size, *devices) as card,
          recording(args, partner) as record):
        print("Talk; Ctrl-C ends it. Wear headphones, or the model hears itself.", flush=True)
        conversation = partner.hold(card, monologue, args.seed, record)
        sound_card.show(card, conversation, monologue, 1 / config.frame_rate)


def talk_again(partner, args):
    """--replay: what --record kept is said again, and the answer compared with the one kept."""
    replay = args.again
    _, model_audio, _ = partner.converse(replay.user_audio, partner.monologue(), replay.seed)
    replay.compare(model_audio, partner.codec.config.sample_rate)
