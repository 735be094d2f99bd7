#pragma once

namespace mpamatch {

// What CMake knew when it built the libraries; lists are separated by semicolons, "" means none.
struct BuildInformation {
    const char* version;
    const char* torch;
    const char* compiler;
    const char* flags;
    const char* instruction_sets;
    const char* cuda;
    const char* cuda_architectures;
    const char* source_hash;
    const char* cuda_source_hash;
};

extern const BuildInformation build_information;

}  // namespace mpamatch
