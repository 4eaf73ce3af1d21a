/* The least that decoding the frames of R clips can cost: libav alone, one thread, no Python.
 *
 * Built by bench_decode.py where the headers are installed:  cc -O2 -shared -fPIC decode_limit.c -lavformat -lavcodec ...
 * The same plan as clips.decode.pyav: read all packets, decode from the keyframe before each wanted frame, let the
 * decoder skip what nothing refers to, scale the crop once. Files without presentation times are counted from the start.
 */
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/imgutils.h>
#include <libswscale/swscale.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    AVFormatContext *format;
    AVCodecContext *codec;
    AVPacket **packets;
    int count, stream, timed;
    int64_t *times; /* presentation times in order */
} Video;

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void release(Video *v) {
    for (int i = 0; i < v->count; i++) av_packet_free(&v->packets[i]);
    free(v->packets);
    free(v->times);
    avcodec_free_context(&v->codec);
    avformat_close_input(&v->format);
}

static int open_video(Video *v, const char *path) {
    const AVCodec *decoder = NULL;
    memset(v, 0, sizeof *v);
    av_log_set_level(AV_LOG_FATAL);
    if (avformat_open_input(&v->format, path, NULL, NULL) < 0) return -1;
    if (avformat_find_stream_info(v->format, NULL) < 0) return -2;
    v->stream = av_find_best_stream(v->format, AVMEDIA_TYPE_VIDEO, -1, -1, &decoder, 0);
    if (v->stream < 0) return -3;
    v->codec = avcodec_alloc_context3(decoder);
    avcodec_parameters_to_context(v->codec, v->format->streams[v->stream]->codecpar);
    v->codec->thread_count = 1;
    if (avcodec_open2(v->codec, decoder, NULL) < 0) return -4;
    for (unsigned i = 0; i < v->format->nb_streams; i++)
        if ((int)i != v->stream) v->format->streams[i]->discard = AVDISCARD_ALL;
    int room = 0;
    AVPacket *packet = av_packet_alloc();
    v->timed = strcmp(v->format->iformat->name, "avi") != 0;
    while (av_read_frame(v->format, packet) >= 0) {
        if (packet->stream_index == v->stream && packet->size) {
            if (v->count == room) {
                room = room ? 2 * room : 512;
                v->packets = realloc(v->packets, room * sizeof *v->packets);
            }
            if (packet->pts == AV_NOPTS_VALUE) v->timed = 0;
            v->packets[v->count++] = av_packet_clone(packet);
        }
        av_packet_unref(packet);
    }
    av_packet_free(&packet);
    v->times = malloc((v->count + 1) * sizeof *v->times);
    for (int i = 0; i < v->count; i++) v->times[i] = v->packets[i]->pts;
    if (v->timed) qsort(v->times, v->count, sizeof *v->times, by_value);
    return 0;
}

/* Place of a frame among the wanted ones (sorted), or -1. */
static int place(const int *wanted, int count, int index) {
    int low = 0, high = count - 1;
    while (low <= high) {
        int middle = (low + high) / 2;
        if (wanted[middle] == index) return middle;
        if (wanted[middle] < index) low = middle + 1;
        else high = middle - 1;
    }
    return -1;
}

static int index_of(const Video *v, int64_t pts) {
    int64_t *found = bsearch(&pts, v->times, v->count, sizeof pts, by_value);
    return found ? (int)(found - v->times) : -1;
}

static int keyframe_before(const Video *v, int64_t pts) {
    int best = 0;
    for (int i = 0; i < v->count; i++)
        if ((v->packets[i]->flags & AV_PKT_FLAG_KEY) && v->packets[i]->pts <= pts) best = i;
    return best;
}

static struct SwsContext *scaler; /* kept between frames and clips, as a worker would */

static void crop_and_scale(const AVFrame *f, const int *box, int size, unsigned char *out) {
    const AVPixFmtDescriptor *form = av_pix_fmt_desc_get(f->format);
    const unsigned char *planes[4] = {0};
    int x = box[0] & ~1, y = box[1] & ~1;
    for (int p = 0; p < 4 && f->data[p]; p++) {
        int across = p == 1 || p == 2 ? form->log2_chroma_w : 0, down = p == 1 || p == 2 ? form->log2_chroma_h : 0;
        planes[p] = f->data[p] + (y >> down) * f->linesize[p] + (x >> across) * form->comp[p].step;
    }
    scaler = sws_getCachedContext(scaler, box[2], box[3], f->format, size, size, AV_PIX_FMT_RGB24, SWS_BILINEAR, 0, 0, 0);
    unsigned char *rows[4] = {out};
    int strides[4] = {3 * size};
    sws_scale(scaler, planes, f->linesize, 0, box[3], rows, strides);
}

/* Decode the frames of `clips` clips of `frames` frames each.
 *
 * wanted: sorted frame numbers, each once; uses[i]: for each clip and frame its place in `wanted`; boxes: x y w h of
 * each clip; out: [clips, frames, size, size, 3]. Returns the number of wanted frames that came out, or an error < 0.
 */
int decode_clips(const char *path, const int *wanted, int count, const int *uses, const int *boxes, int clips,
                 int frames, int size, unsigned char *out) {
    Video v;
    int failed = open_video(&v, path);
    if (failed) {
        release(&v);
        return failed;
    }
    int skips = v.timed && (v.codec->codec_id == AV_CODEC_ID_H264 || v.codec->codec_id == AV_CODEC_ID_HEVC ||
                            v.codec->codec_id == AV_CODEC_ID_MPEG4);
    AVFrame *frame = av_frame_alloc();
    char *got = calloc(count, 1);
    int left = count, next = 0, shown = 0;
    int at = v.timed ? keyframe_before(&v, v.times[wanted[0]]) : 0;
    while (left && at <= v.count) {
        AVPacket *packet = at < v.count ? v.packets[at] : NULL;
        if (skips && packet)
            v.codec->skip_frame =
                place(wanted, count, index_of(&v, packet->pts)) >= 0 ? AVDISCARD_DEFAULT : AVDISCARD_NONREF;
        avcodec_send_packet(v.codec, packet);
        while (avcodec_receive_frame(v.codec, frame) >= 0) {
            int here = place(wanted, count, v.timed ? index_of(&v, frame->pts) : shown++);
            if (here >= 0 && !got[here]) {
                got[here] = 1;
                left--;
                for (int i = 0; i < clips * frames; i++)
                    if (uses[i] == here)
                        crop_and_scale(frame, boxes + 4 * (i / frames), size, out + (size_t)i * size * size * 3);
            }
        }
        while (next < count && got[next]) next++;
        if (v.timed && next < count) {
            int key = keyframe_before(&v, v.times[wanted[next]]);
            if (key > at + 1) {
                avcodec_flush_buffers(v.codec);
                at = key;
                continue;
            }
        }
        at++;
    }
    free(got);
    av_frame_free(&frame);
    release(&v);
    return count - left;
}
