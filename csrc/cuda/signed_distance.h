// The kernels of signed_distance, in whole numbers: squared distances along the rows, then along the columns.
#pragma once

#include "cuda/primitives.h"

namespace mpamatch::cuda {

constexpr int distance_threads = 256;

struct Planes {
    int classes;
    int height;
    int width;

    // More than any squared distance within an image; it stands for the distance to nothing.
    MPAMATCH_BOTH int none() const { return height * height + width * width; }
};

// square[b, c, y, x]: the squared distance within the row to the nearest pixel on the other side of class c: + outside
// the class, - inside it, +-none where the row has no other side. A block takes a row: the class is a bit a pixel, and
// a thread looks for the nearest bit of the other kind, 32 pixels at a time.
struct DistanceRows {
    static constexpr int threads = distance_threads;
    static constexpr int blocks_per_processor = 4;

    Indices label;      // (B, H, W)
    std::int64_t rows;  // B * H
    Planes planes;
    std::int32_t* square;

    MPAMATCH_BOTH std::int64_t shared_bytes(int) const {
        Shared shared(nullptr);
        Row(shared, planes.width);
        return shared.bytes();
    }

    MPAMATCH_DEVICE void run(unsigned char* memory) const {
        Shared shared(memory);
        const Row row(shared, planes.width);
        for (std::int64_t r = block_index(); r < rows; r += block_count()) {
            for (int x = thread_index(); x < planes.width; x += thread_count()) {
                row.label[x] = static_cast<std::int16_t>(read_index(label, r * planes.width + x, planes.classes));
            }
            block_barrier();
            const std::int64_t image = r / planes.height, y = r % planes.height;
            for (int c = 0; c < planes.classes; ++c) {
                set_bits(row, c);
                block_barrier();
                std::int32_t* to = square + ((image * planes.classes + c) * planes.height + y) * planes.width;
                for (int x = thread_index(); x < planes.width; x += thread_count()) to[x] = square_at(row, c, x);
                block_barrier();
            }
        }
    }

  private:
    struct Row {
        std::int16_t* label;  // (W), -1 where it is of no class
        std::uint32_t* bits;  // (W / 32, rounded up): whether a pixel is inside the class

        MPAMATCH_BOTH Row(Shared& shared, int width)
            : label(shared.take<std::int16_t>(width)), bits(shared.take<std::uint32_t>(divide_up(width, warp_size))) {}
    };

    MPAMATCH_DEVICE void set_bits(const Row& row, int c) const {
        const int lane = thread_index() % warp_size;
        for (int first = thread_index() - lane; first < planes.width; first += thread_count()) {
            const int x = first + lane;
            const int inside = x < planes.width && row.label[x] == c;
            const std::uint32_t same = same_in_warp(inside);
            if (lane == 0) row.bits[first / warp_size] = inside != 0 ? same : ~same;
        }
    }

    // The pixels of a word on the other side of a pixel; what lies beyond the row is on no side.
    MPAMATCH_DEVICE std::uint32_t others(const Row& row, int word, bool inside) const {
        const int left = planes.width - word * warp_size;
        const std::uint32_t within = left < warp_size ? (1u << left) - 1u : ~0u;
        return (inside ? ~row.bits[word] : row.bits[word]) & within;
    }

    MPAMATCH_DEVICE std::int32_t square_at(const Row& row, int c, int x) const {
        const bool inside = row.label[x] == c;
        const int own = x / warp_size, words = static_cast<int>(divide_up(planes.width, warp_size));
        const std::uint32_t below = (1u << (x % warp_size)) - 1u;
        const std::uint32_t here = others(row, own, inside);
        int nearest = planes.width;
        std::uint32_t found = here & below;
        int word = own;
        while (found == 0 && word > 0) found = others(row, --word, inside);
        if (found != 0) nearest = x - (word * warp_size + highest_bit(found));
        found = here & ~below;
        word = own;
        while (found == 0 && word + 1 < words) found = others(row, ++word, inside);
        if (found != 0) {
            const int right = word * warp_size + lowest_bit(found) - x;
            nearest = right < nearest ? right : nearest;
        }
        const int squared = nearest < planes.width ? nearest * nearest : planes.none();
        return inside ? -squared : squared;
    }
};

// The distances: min over the rows y' of (y - y')^2 + square[y'], where a pixel on the other side counts as 0. A block
// takes 32 columns and some rows of a plane, a warp a row of these; a thread looks up and down as far as its best.
struct DistanceColumns {
    static constexpr int threads = distance_threads;
    static constexpr int blocks_per_processor = 4;
    static constexpr int tile_rows = 64;
    static constexpr int steps = 4;  // up and down before a thread looks whether it is done: loads that overlap

    Planes planes;
    const std::int32_t* square;
    float* distance;

    MPAMATCH_BOTH static std::int64_t tiles(const Planes& planes) {
        return divide_up(planes.width, warp_size) * divide_up(planes.height, tile_rows);
    }
    MPAMATCH_BOTH std::int64_t shared_bytes(int threads_in_block) const {
        Shared shared(nullptr);
        shared.take<int>(threads_in_block / warp_size);
        return shared.bytes();
    }

    MPAMATCH_DEVICE void run(unsigned char* memory) const {
        const int across = static_cast<int>(divide_up(planes.width, warp_size));
        const std::int64_t tile = block_index() % tiles(planes);
        const std::int64_t plane = block_index() / tiles(planes) * planes.height * planes.width;
        const int x = static_cast<int>(tile % across) * warp_size + thread_index() % warp_size;
        const int first = static_cast<int>(tile / across) * tile_rows;
        const bool two_sides = has_two_sides(square + plane, Shared(memory).take<int>(thread_count() / warp_size));
        if (x >= planes.width) return;
        for (int y = first + thread_index() / warp_size; y < first + tile_rows && y < planes.height;
             y += thread_count() / warp_size) {
            const std::int32_t here = square[plane + std::int64_t(y) * planes.width + x];
            const int nearest = two_sides ? least(square + plane + x, y, here) : planes.none();
            const float root = root_of(nearest);
            distance[plane + std::int64_t(y) * planes.width + x] = here > 0 ? root : nearest == 1 ? 0.0f : -root;
        }
    }

  private:
    // Whether the plane has pixels inside the class and outside it. If not, every row says `none`, so that one column
    // tells; without this a thread would look at all rows in vain.
    MPAMATCH_DEVICE bool has_two_sides(const std::int32_t* plane, int* of_warp) const {
        const int sign = plane[0] > 0 ? 1 : -1;
        int found = 0;
        for (int y = thread_index(); y < planes.height; y += thread_count()) {
            found |= sign * plane[std::int64_t(y) * planes.width] != planes.none();
        }
        const std::uint32_t same = same_in_warp(found);
        if (thread_index() % warp_size == 0) of_warp[thread_index() / warp_size] = found != 0 || same != ~0u;
        block_barrier();
        int any = 0;
        for (int warp = 0; warp < thread_count() / warp_size; ++warp) any |= of_warp[warp];
        return any != 0;
    }

    MPAMATCH_DEVICE int least(const std::int32_t* column, int y, std::int32_t here) const {
        const bool inside = here < 0;
        int best = inside ? -here : here;
        for (int begin = 1; begin < planes.height && begin * begin < best; begin += steps) {
            MPAMATCH_UNROLL
            for (int apart = begin; apart < begin + steps; ++apart) {
                // beyond the image its last row stands in, from further away than it is: that betters nothing
                const int above = y > apart ? y - apart : 0;
                const int below = y + apart < planes.height ? y + apart : planes.height - 1;
                best = nearer(column[std::int64_t(above) * planes.width], inside, apart, best);
                best = nearer(column[std::int64_t(below) * planes.width], inside, apart, best);
            }
        }
        return best;
    }

    // The nearest float; up to 2^24 the number is a float itself, and double precision is slow on most GPUs.
    MPAMATCH_DEVICE static float root_of(int squared) {
        if (squared <= 1 << 24) return std::sqrt(static_cast<float>(squared));
        return static_cast<float>(std::sqrt(static_cast<double>(squared)));
    }

    MPAMATCH_DEVICE static int nearer(std::int32_t there, bool inside, int apart, int best) {
        const int along_row = inside ? -there : there;
        const int squared = (along_row > 0 ? along_row : 0) + apart * apart;
        return squared < best ? squared : best;
    }
};

}  // namespace mpamatch::cuda
